"""A loaded C2SER: call it with audio for answers.

Shapes: J labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from c2ser_jax.answering.ask import Answer, Ask, Part, make_ask
from c2ser_jax.answering.engine import AnswerEngine, Heard
from c2ser_jax.answering.texts import AnswerTexts
from c2ser_jax.data.answer_text import parse_answer
from c2ser_jax.data.cot_text import style_word
from c2ser_jax.data.prompts import Language
from c2ser_jax.data.speaking_style import ATTRIBUTES
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import Clip, Failure
from c2ser_jax.extraction.inputs import clips_from
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.training.checkpoint import ModelDescription


class SpeechModel:
    """A loaded model that hears, reasons and answers."""

    def __init__(self, description: ModelDescription, engine: AnswerEngine, temperature: float):
        """Use `c2ser_jax.load`."""
        self.description, self.engine, self.temperature = description, engine, temperature
        self._silent: dict[tuple[Language, int], np.ndarray] = {}

    @property
    def config(self) -> C2serConfig:
        """Sizes and options of the parts."""
        return self.engine.cfg

    @property
    def texts(self) -> AnswerTexts:
        """Prompts and answers as tokens."""
        return self.engine.texts

    @property
    def used_labels(self) -> list[str]:
        """The label set, in the order of the probabilities."""
        return list(self.texts.labels)

    def require_head(self) -> None:
        """Nothing: a model that answers needs no head."""

    def require_features(self, granularity: str, layer: int | None) -> None:
        """Raises `UserError`: features are the acoustic encoder's."""
        raise UserError(
            "a c2ser model gives answers, no features; take those of the emotion2vec model that "
            "it was made of"
        )

    def __call__(self, audio: Any, rate: int | None = None, **asked: Any) -> Any:
        """The `Answer` about one input, or the list of them for a list of inputs.

        audio: a path, samples [M] or [M, channels] with their `rate` in Hz, an `Utterance`, a
        mapping with "array" and "sampling_rate", or a list of such. asked: fields of `Ask`, such as
        mode="explicit"; language=None means "auto".

        Raises:
          UserError: an input cannot be used (`stream` goes on instead), or no such thing is asked.
        """
        clips, single = clips_from(audio, rate)
        found: dict[int, Answer] = {}
        for index, result in self.stream(clips, make_ask(**asked)):
            if isinstance(result, Failure):
                raise UserError(result.message)
            found[index] = result
        return found[0] if single else [found[i] for i in range(len(clips))]

    def stream(
        self, clips: Sequence[Clip], ask: Ask | None = None, *, alone: bool = False
    ) -> Iterator[tuple[int, Answer | Failure]]:
        """Yields (place in `clips`, answer or failure) as they come, each clip once.

        alone: every window in a batch of its own.

        Raises:
          UserError: prompt, speech and answer don't fit the language model.
        """
        ask = ask or Ask()
        languages: list[Language] = [
            ask.language_of(clip.utterance.language if clip.utterance else None) for clip in clips
        ]
        asked = sorted(set(languages)) if ask.prior else []
        silent = {name: self.silence(name, ask.prompt) for name in asked}
        heard: dict[int, list[Heard]] = {}
        failed = set()
        for item in self.engine.run(clips, ask, languages, alone=alone):
            if item.index in failed:
                continue
            if isinstance(item, Failure):
                failed.add(item.index)
                heard.pop(item.index, None)
                yield item.index, item
                continue
            heard.setdefault(item.index, []).append(item)
            if item.last:
                language = languages[item.index]
                prior = silent.get(language, np.zeros(1))
                parts = heard.pop(item.index)
                yield item.index, self._answer(clips[item.index].id, parts, ask, language, prior)

    def silence(self, language: Language, wording: int = 0) -> np.ndarray:
        """Log-probabilities float64[J] of the labels' short answers for a second of silence.

        Computed once for every wording of the prompt.
        """
        if (language, wording) not in self._silent:
            clip = Clip("silence", audio=np.zeros(self.config.acoustic.sample_rate, np.float32))
            [item] = self.engine.run([clip], Ask(language=language, prompt=wording), [language])
            if isinstance(item, Failure):
                raise UserError(item.message)
            self._silent[language, wording] = item.scores
        return self._silent[language, wording]

    def probabilities(self, scores: np.ndarray) -> dict[str, float]:
        """Probabilities, which sum to 1, of scores float64[J]."""
        scaled = (scores - scores.max()) / self.temperature
        weights = np.exp(scaled)
        return dict(zip(self.used_labels, (weights / weights.sum()).tolist(), strict=True))

    def _answer(
        self, name: str, heard: list[Heard], ask: Ask, language: Language, prior: np.ndarray
    ) -> Answer:
        """One answer from the windows of a clip: their scores are averaged by duration."""
        rate = self.config.acoustic.sample_rate
        spans = np.array([item.end - item.start for item in heard], np.float64)
        scores = np.stack([item.scores for item in heard]) - prior
        overall = self.probabilities(spans @ scores / spans.sum())
        parts, texts = [], []
        for item, score in zip(heard, scores, strict=True):
            found = self.probabilities(score)
            label, text = max(found, key=found.__getitem__), None
            if item.tokens is not None:
                text, sure = self.texts.written(item.tokens, item.reasoning, ask, language, label)
                label = sure or parse_answer(text, self.used_labels).label
                texts.append(text)
            parts.append(Part(item.start / rate, item.end / rate, label, found, text))
        label: str | None = max(overall, key=overall.__getitem__)
        if ask.mode != "labels":
            label = _most_said(parts, overall)
        answer = Answer(
            name, label, overall, heard[0].samples / rate, ask.mode, language,
            windows=tuple(parts) if len(parts) > 1 else (),
        )  # fmt: skip
        if ask.mode == "labels":
            return answer
        read = [parse_answer(text, self.used_labels) for text in texts]
        words = {}
        for name in ATTRIBUTES:
            levels = [level for one in read if (level := getattr(one, name)) is not None]
            level = max(levels, key=levels.count) if levels else None  # the first of equals
            words[name] = style_word(name, level, language)
        return replace(
            answer,
            text="\n".join(texts),
            transcript=" ".join(one.transcript for one in read if one.transcript) or None,
            rationale=" ".join(one.rationale for one in read if one.rationale) or None,
            **words,
        )


def _most_said(parts: Sequence[Part], overall: dict[str, float]) -> str | None:
    """The label that answers name for the longest time, the likelier one of equals; or None."""
    said: dict[str, float] = {}
    for part in parts:
        if part.label is not None:
            said[part.label] = said.get(part.label, 0.0) + part.end - part.start
    return max(said, key=lambda label: (said[label], overall[label])) if said else None
