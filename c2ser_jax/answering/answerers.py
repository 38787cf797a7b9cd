"""One way to ask both kinds of models: rows of labels, scores and words for a list of clips."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from c2ser_jax import inference
from c2ser_jax.answering.ask import Answer, Ask
from c2ser_jax.answering.model import SpeechModel
from c2ser_jax.data.answer_text import parse_answer
from c2ser_jax.data.labels import class_index
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import Clip, Failure

Row = dict[str, Any]
_SAID = ("text", "transcript", "rate", "pitch", "loudness", "rationale")


class SpeechAnswerer:
    """Asks a C2SER."""

    modes = ("labels", "implicit", "explicit")

    def __init__(self, model: SpeechModel):
        """The model's own temperature is set aside: rows hold scores before any."""
        self.model, self.temperature = model, model.temperature
        self.labels = model.used_labels
        model.temperature = 1.0

    def ask(
        self, clips: Sequence[Clip], ask: Ask, *, alone: bool = False
    ) -> Iterator[tuple[int, Row | Failure]]:
        """Yields (place, row or failure); `alone`: every clip in a batch of its own."""
        for index, answer in self.model.stream(clips, ask, alone=alone):
            yield index, answer if isinstance(answer, Failure) else self._row(answer, ask)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compiling so far."""
        return self.model.engine.compile_seconds

    @property
    def wordings(self) -> int:
        """How many wordings the prompts have."""
        return self.model.texts.wordings("labels")

    def _row(self, answer: Answer, ask: Ask) -> Row:
        row: Row = {"predicted": answer.label, "scores": _logarithms(answer.probabilities)}
        if ask.mode != "labels":
            row |= {k: value for k in _SAID if (value := getattr(answer, k)) is not None}
            row["named"] = answer.label
            if answer.label is None:
                row["named"] = parse_answer(answer.text or "", self.labels).named
        return row


class EncoderAnswerer:
    """Asks an encoder with a head, restricted to the classes that a label set means."""

    modes = ("labels",)
    wordings = 1

    def __init__(self, model: inference.Model, labels: Sequence[str] = ()):
        """`labels`: the label set; empty: the head's own.

        Raises:
          UserError: the model has no head, or no class of it means one of the labels.
        """
        model.require_head()
        self.model, self.temperature = model, model.temperature
        self.labels = list(labels or model.used_labels)
        model.temperature = 1.0
        self._places = {}
        for label in self.labels:
            place = class_index(label, model.used_labels)
            if place is None:
                raise UserError(
                    f"no class of the model means {label!r}: it has "
                    f"{', '.join(model.used_labels)}; give --labels that it knows"
                )
            self._places[label] = model.used_labels[place]
        self.compile_seconds = 0.0

    def ask(
        self, clips: Sequence[Clip], ask: Ask, *, alone: bool = False
    ) -> Iterator[tuple[int, Row | Failure]]:
        """Yields (place, row or failure); `alone`: every clip in a batch of its own."""
        engine = self.model.engine
        cfg = engine.cfg
        if alone:
            engine.cfg = dataclasses.replace(cfg, batch_seconds=1e-3)
        try:
            for index, found in self.model.stream(clips):
                yield index, found if isinstance(found, Failure) else self._row(found)
        finally:
            engine.cfg = cfg
            self.compile_seconds += sum(engine.report.compile_seconds.values())

    def _row(self, found: inference.Prediction) -> Row:
        kept = {label: found.probabilities[name] for label, name in self._places.items()}
        total = math.fsum(kept.values()) or 1.0
        scores = _logarithms({label: value / total for label, value in kept.items()})
        return {"predicted": max(scores, key=scores.__getitem__), "scores": scores}


Answerer = SpeechAnswerer | EncoderAnswerer


def load_answerer(
    directory: Path, labels: Sequence[str], *, dtype: str | None, batch_seconds: float | None
) -> Answerer:
    """A model directory of either kind, to be asked with a label set (empty: its own).

    Raises:
      UserError: as `load`, or the labels are none that it can answer with.
    """
    kind = inference.read_description(directory).kind
    options: dict[str, Any] = dict(dtype=dtype, batch_seconds=batch_seconds)
    if kind == inference.SPEECH_KIND:
        return SpeechAnswerer(inference.load(directory, labels=labels or None, **options))
    return EncoderAnswerer(inference.load(directory, **options), labels)


class Clock:
    """Seconds of a block, and how many of them an answerer spent on compiling."""

    def __init__(self, answerer: Answerer):
        """Starts now."""
        self._answerer, self._before = answerer, answerer.compile_seconds
        self._start = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """(seconds without compiling, seconds of compiling) so far."""
        compiling = self._answerer.compile_seconds - self._before
        return time.perf_counter() - self._start - compiling, compiling


def _logarithms(probabilities: dict[str, float]) -> dict[str, float]:
    """Logarithms; what is too small for one counts as the smallest number."""
    return {k: math.log(max(value, 5e-324)) for k, value in probabilities.items()}
