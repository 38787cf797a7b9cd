"""From a model directory of kind "c2ser" to a model that answers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from c2ser_jax.answering.engine import AnswerEngine
from c2ser_jax.answering.model import SpeechModel
from c2ser_jax.answering.texts import AnswerTexts
from c2ser_jax.data.labels import canonical_label, unknown_label
from c2ser_jax.data.tokenizer import check_tokenizer, load_tokenizer
from c2ser_jax.errors import UserError
from c2ser_jax.models.c2ser import C2ser, C2serConfig
from c2ser_jax.parallel.rules import unbox
from c2ser_jax.training.checkpoint import ModelDescription, flatten, read_params
from c2ser_jax.training.model_directory import (
    TOKENIZER,
    check_shapes,
    ends_of,
    reading_config,
    temperature_of,
)

KIND = "c2ser"


def load_speech_model(
    directory: Path,
    description: ModelDescription,
    *,
    dtype: str | None = None,
    batch_seconds: float,
    window_seconds: float | None = None,
    labels: Sequence[str] | None = None,
    log: Callable[[str], None] | None = None,
) -> SpeechModel:
    """Loads a directory that training or conversion wrote.

    labels: the label set, instead of the directory's own; every label must be a known emotion word.
    window_seconds: longer audio is cut into windows of this length; None: as long as the encoder
      hears.

    Raises:
      UserError: config, parameters, tokenizer or labels don't fit each other.
    """
    config = speech_config(description, directory, dtype)
    params = read_params(directory)
    check_shapes(params, speech_shapes(config), directory)
    if not (directory / TOKENIZER).is_dir():
        raise UserError(
            f"{directory} has no {TOKENIZER} folder, without which no prompt can be read; convert "
            "or train the model again"
        )
    tokenizer = load_tokenizer(directory / TOKENIZER)
    check_tokenizer(tokenizer, config.llm.vocabulary, ends_of(description))
    texts = AnswerTexts(
        tokenizer, label_set(labels, description), vocabulary=config.llm.vocabulary,
        prompts=description.extra.get("prompts"),
    )  # fmt: skip
    engine = AnswerEngine(
        config, params, texts,
        batch_seconds=batch_seconds,
        window_seconds=window_seconds or config.max_samples / config.acoustic.sample_rate,
        log=log or (lambda line: None),
    )  # fmt: skip
    return SpeechModel(description, engine, temperature_of(description))


def label_set(labels: Sequence[str] | None, description: ModelDescription) -> list[str]:
    """The labels asked for, else the directory's own.

    Raises:
      UserError: there are none, one is no emotion word, or one comes twice.
    """
    found = list(labels or description.labels or ())
    if not found:
        raise UserError("the model directory names no labels; give some, such as labels=['happy']")
    for label in found:
        if label not in (description.labels or ()) and canonical_label(label) is None:
            raise UserError(unknown_label(label, description.labels or found))
    if len(set(found)) < len(found):
        raise UserError(f"the labels {', '.join(found)} name one of them twice; give each once")
    return found


def speech_config(
    description: ModelDescription, directory: Path, dtype: str | None = None
) -> C2serConfig:
    """The config of a directory, all parts computing in `dtype` where it is given.

    Raises:
      UserError: it makes no sense.
    """
    with reading_config(directory):
        config = C2serConfig.from_dict(description.model)
        if dtype is None:
            return config
        parts = ("acoustic", "encoder", "connector", "llm")
        changed = {n: dataclasses.replace(getattr(config, n), dtype=dtype) for n in parts}
        return dataclasses.replace(config, **changed)


@functools.lru_cache(maxsize=8)  # an initialisation is traced: seconds per model
def speech_shapes(config: C2serConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by path, without allocating any."""
    rows = lambda n, dtype: jax.ShapeDtypeStruct((1, n), dtype)  # noqa: E731
    samples = jax.ShapeDtypeStruct((1,), np.int32)
    tokens, mask = rows(1, np.int32), rows(1, bool)
    audio = rows(max(config.acoustic.receptive_samples, 3200), np.float32)
    shapes = jax.eval_shape(
        C2ser(config).init, jax.random.key(0), audio, samples, tokens, mask, tokens, mask
    )
    return {n: tuple(leaf.shape) for n, leaf in flatten(unbox(shapes["params"])).items()}
