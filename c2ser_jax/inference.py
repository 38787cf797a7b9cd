"""From a model directory to answers: `model = load(DIR); model("a.wav")`.

The door that extract, predict and evaluate use too. Shapes: N samples, T frames, D width, E extra
tokens, C classes.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2ser_jax.compilation import enable_compilation_cache
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import Clip, Cutting, Failure
from c2ser_jax.extraction.engine import Engine, EngineConfig
from c2ser_jax.extraction.features import Assembler, Granularity, TokenForm
from c2ser_jax.extraction.inputs import clips_from
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig
from c2ser_jax.parallel.rules import unbox
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    flatten,
    read_description,
    read_params,
)
from c2ser_jax.training.model_directory import (
    TOKENIZER,
    check_shapes,
    reading_config,
    temperature_of,
)

KINDS = ("emotion2vec", "emotion2vec_pretraining", "emotion2vec_classifier")
SPEECH_KIND = "c2ser"
Log = Callable[[str], None]


@dataclass(frozen=True)
class Section:
    """What was heard between `start` and `end` seconds."""

    start: float
    end: float
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """The emotion of one utterance; `timeline` has its sections when they were asked for."""

    id: str
    label: str
    probabilities: dict[str, float]
    seconds: float
    timeline: tuple[Section, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """The fields as JSON values; without a timeline, none is named."""
        row = dataclasses.asdict(self)
        row["timeline"] = list(row["timeline"])
        if not self.timeline:
            del row["timeline"]
        return row


class Model:
    """A loaded model; call it with audio for predictions, or ask for `features`."""

    def __init__(self, description: ModelDescription, engine: Engine):
        """Use `load`."""
        self.description, self.engine = description, engine
        self.config = engine.model
        self.temperature = temperature_of(description)
        self.labels: list[str] = list(description.labels or [])
        unused = set(description.extra.get("unused_labels") or [])
        self._used = [
            i for i, label in enumerate(self.labels)
            if label not in unused and not label.startswith("unuse")
        ]  # fmt: skip

    @property
    def used_labels(self) -> list[str]:
        """Labels that get a probability, in the head's order; `unuse…` entries get none."""
        return [self.labels[i] for i in self._used]

    def __call__(
        self, audio: Any, rate: int | None = None, *, timeline_seconds: float | None = None
    ) -> Any:
        """The `Prediction` of one input, or the list of them for a list of inputs.

        audio: a path, samples [M] or [M, channels] with their `rate` in Hz, an `Utterance`, a
        mapping with "array" and "sampling_rate", or a list of such.
        timeline_seconds: also predict each section of this length.

        Raises:
          UserError: an input cannot be used (`stream` goes on instead), or the model has no head.
        """
        clips, single = clips_from(audio, rate)
        found: dict[int, Prediction] = {}
        for index, result in self.stream(clips, timeline_seconds=timeline_seconds):
            if isinstance(result, Failure):
                raise UserError(result.message)
            found[index] = result
        return found[0] if single else [found[i] for i in range(len(clips))]

    def stream(
        self, clips: Sequence[Clip], *, timeline_seconds: float | None = None
    ) -> Iterator[tuple[int, Prediction | Failure]]:
        """Yields (place in `clips`, prediction or failure) as they come, each clip once.

        Raises:
          UserError: the model has no head.
        """
        self.require_head()
        assembler, failed = Assembler("frame_logits"), set()
        for item in self.engine.run(clips, ("frame_logits",)):
            if item.index in failed:
                continue
            if isinstance(item, Failure):
                failed.add(item.index)
                assembler.drop(item.index)
                yield item.index, item
            elif (logits := assembler.add(item)) is not None:
                seconds = item.samples / self.config.sample_rate
                clip = clips[item.index]
                yield item.index, self._predict(clip.id, logits, seconds, timeline_seconds)

    def features(
        self,
        audio: Any,
        granularity: Granularity = "frame",
        *,
        rate: int | None = None,
        layer: int | None = None,
        utterance_tokens: TokenForm = "model",
    ) -> Any:
        """Features of one input, or a list of them: float32 "frame" [T, D], "utterance" [D] (the
        mean frame) or "tokens" [E, D]; inputs as for a call. `layer` counts the main blocks from 1.

        Raises:
          UserError: an input cannot be used, or there is no such granularity or layer.
        """
        self.require_features(granularity, layer)
        clips, single = clips_from(audio, rate)
        assembler = Assembler.of(granularity, utterance_tokens, self.config.extra_tokens)
        found: dict[int, np.ndarray] = {}
        for item in self.engine.run(clips, (assembler.output,), layer=layer):
            if isinstance(item, Failure):
                raise UserError(item.message)
            values = assembler.add(item)
            if values is not None:
                found[item.index] = np.array(values)
        return found[0] if single else [found[i] for i in range(len(clips))]

    def require_head(self) -> None:
        """Raises `UserError` when the model cannot predict labels."""
        if not self._used:
            raise UserError(
                f"this model ({self.description.kind}) has no emotion head, so it gives features "
                "but no labels; extract features, or fine-tune it with a classify stage first"
            )

    def require_features(self, granularity: str, layer: int | None) -> None:
        """Raises `UserError` for a granularity or block that the model does not have."""
        known = ("frame", "utterance", "tokens")
        if granularity not in known:
            raise UserError(f"granularity {granularity!r} is none of {', '.join(known)}")
        if granularity == "tokens" and not self.config.extra_tokens:
            raise UserError("this model has no utterance tokens; ask for frame or utterance")
        if layer is not None and not 1 <= layer <= self.config.depth:
            raise UserError(
                f"there is no block {layer}: this model's main blocks are 1 to {self.config.depth}"
            )

    def _predict(
        self, clip_id: str, frame_logits: np.ndarray, seconds: float, step: float | None
    ) -> Prediction:
        """From float32[T, C]: the head is linear, so its mean is the head of the mean frame."""
        logits = frame_logits[:, self._used].astype(np.float64)
        label, probabilities = self._label(logits.mean(axis=0))
        sections = []
        if step is not None:
            second = self.config.sample_rate / self.config.hop_samples
            frames = max(1, round(step * second))
            for first in range(0, len(logits), frames):
                part = logits[first : first + frames]
                end = seconds if first + frames >= len(logits) else (first + frames) / second
                sections.append(Section(first / second, end, *self._label(part.mean(axis=0))))
        return Prediction(clip_id, label, probabilities, seconds, tuple(sections))

    def _label(self, logits: np.ndarray) -> tuple[str, dict[str, float]]:
        weights = np.exp((logits - logits.max()) / self.temperature)
        probabilities = weights / weights.sum()
        names = self.used_labels
        return names[int(np.argmax(logits))], dict(zip(names, probabilities.tolist(), strict=True))


def load(
    directory: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    batch_seconds: float | None = None,
    window_seconds: float | None = None,
    labels: Sequence[str] | None = None,
    log: Log | None = None,
) -> Any:
    """Loads a model directory, as training and conversion write it.

    Returns a `Model`, or for a C2SER a `SpeechModel` (`c2ser_jax.answering.model`).

    dtype: "float32" or "bfloat16" to compute in, instead of the directory's own choice.
    batch_seconds: audio per batch; None: 32 on a CPU, 240 on an accelerator.
    window_seconds: longer audio is cut into overlapping windows of this length; None: 30, or what
      the encoder of a C2SER hears at once.
    labels: the label set that a C2SER answers from, instead of its own.
    log: takes a line for each shape compiled; None is silent.

    Raises:
      UserError: it is no model directory, of an unknown kind, or its parameters do not fit.
    """
    directory = Path(directory)
    description = read_description(directory)
    if batch_seconds is None:
        batch_seconds = 32.0 if jax.default_backend() == "cpu" else 240.0
    if not batch_seconds > 0:
        raise UserError(f"batch seconds must be positive, not {batch_seconds}")
    log = log or (lambda line: None)
    if description.kind == SPEECH_KIND:
        from c2ser_jax.answering.loading import load_speech_model

        enable_compilation_cache()
        return load_speech_model(
            directory, description, dtype=dtype, batch_seconds=batch_seconds,
            window_seconds=window_seconds, labels=labels, log=log,
        )  # fmt: skip
    if labels is not None:
        raise UserError(
            f"{directory} holds a model of kind {description.kind!r}, whose labels are those of "
            "its head; only a c2ser model takes others"
        )
    config = model_config(description, directory, dtype)
    params = read_params(directory)
    check_params(params, config, description, directory)
    window_seconds = 30.0 if window_seconds is None else window_seconds
    if not window_seconds >= 5:
        raise UserError(f"window seconds must be at least 5, not {window_seconds}")
    enable_compilation_cache()
    cfg = EngineConfig(batch_seconds, Cutting(window_seconds, min(5.0, window_seconds / 4)))
    return Model(description, Engine(config, params, cfg, log=log))


def fingerprint(directory: str | os.PathLike[str]) -> str:
    """A short hash of what decides a model's answers: kind, config, labels, parameters, tokenizer.

    A temperature, which changes no label and no feature, does not.

    Raises:
      UserError: it is no model directory.
    """
    described = dataclasses.asdict(read_description(Path(directory)))
    deciding = {name: described[name] for name in ("kind", "model", "labels", "extra")}
    deciding["extra"] = {k: v for k, v in deciding["extra"].items() if k != "temperature"}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    with open(Path(directory) / "params.safetensors", "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    for path in sorted((Path(directory) / TOKENIZER).glob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def model_config(
    description: ModelDescription, directory: str | os.PathLike[str], dtype: str | None = None
) -> Emotion2VecConfig:
    """The encoder's config of a directory; raises `UserError` when it makes no sense."""
    if description.kind not in KINDS:
        raise UserError(
            f"{directory} holds a model of kind {description.kind!r}; this command knows "
            f"{', '.join((*KINDS, SPEECH_KIND))}"
        )
    with reading_config(directory):
        config = Emotion2VecConfig.from_dict(description.model)
        return dataclasses.replace(config, dtype=dtype) if dtype else config


def check_params(
    params: Mapping[str, Any],
    config: Emotion2VecConfig,
    description: ModelDescription,
    directory: str | os.PathLike[str],
) -> None:
    """Raises `UserError` when the parameters are not those that config and labels call for."""
    wanted = {f"encoder/{name}": shape for name, shape in encoder_shapes(config).items()}
    if description.kind == "emotion2vec_classifier":
        classes = len(description.labels or [])
        wanted["proj/kernel"], wanted["proj/bias"] = (config.width, classes), (classes,)
    check_shapes(params, wanted, directory, under=("encoder/", "proj/"))


@functools.lru_cache(maxsize=8)  # an initialisation is traced: about a second per model
def encoder_shapes(config: Emotion2VecConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the encoder's parameters by path, without allocating any."""
    audio = jax.ShapeDtypeStruct((1, config.receptive_samples), np.float32)
    samples = jax.ShapeDtypeStruct((1,), np.int32)
    shapes = jax.eval_shape(Emotion2Vec(config).init, jax.random.key(0), audio, samples)
    return {name: tuple(leaf.shape) for name, leaf in flatten(unbox(shapes["params"])).items()}
