"""What an evaluation of answers asks: one frozen dataclass, loaded from a Python file.

A config file defines `get_config()` and returns an `EvaluateConfig`; overrides are typed.
"""

from dataclasses import dataclass, field
from typing import Literal

from c2ser_jax.answering.ask import MODES, Ask, Mode
from c2ser_jax.data.prompts import LANGUAGES
from c2ser_jax.decoding.options import Mode as DecodingMode
from c2ser_jax.errors import UserError


@dataclass(frozen=True)
class EvaluationData:
    """Which utterances are asked about."""

    manifest: str = ""
    """List of labelled utterances, in any layout that the library reads."""
    root: str = ""
    """Folder that the list's relative paths start from, or the one with the files."""
    skip_unknown_labels: bool = False
    """Leave out utterances whose label means none of the label set."""
    allow_leakage: bool = False
    """Score even utterances that the model was trained on."""


@dataclass(frozen=True)
class StabilityConfig:
    """How often the same is asked in another way; an encoder alone is compared by batch size."""

    wordings: int = 3
    """Wordings of the prompt, the usual one counted."""
    seeds: int = 3
    """Sampled short answers."""
    alone: bool = True
    """Ask about every utterance by itself, too."""
    items: int = 210
    """Utterances that this, and constrained answers, are measured on, evenly spread over the list;
    0: all."""

    def __post_init__(self):
        for name in ("wordings", "seeds", "items"):
            if getattr(self, name) < 0:
                raise UserError(f"stability.{name} is {getattr(self, name)}: use 0 or more")


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that decides what an evaluation reports."""

    name: str = "evaluation"
    data: EvaluationData = field(default_factory=EvaluationData)
    labels: tuple[str, ...] = ()
    """The label set, in class order; empty: the model's own."""
    modes: tuple[Mode, ...] = ("labels", "implicit", "explicit")
    """How every utterance is asked about; the first one's scores stand at the top."""
    constrained: bool = True
    """Ask in the written modes again, with answers that are always in the label set; about the
    `stability.items` utterances, not the whole list."""
    language: Literal["auto", "en", "zh"] = "auto"
    decoding: DecodingMode = "published"
    max_new_tokens: int | None = None
    prior: bool = False
    """Take off the scores that labels have for silence, but in mode "explicit"."""
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    resamples: int = 1000
    """Of every bootstrap interval."""
    worst: int = 12
    """Wrong answers shown in the report, the surest first."""
    audio_megabytes: float = 8.0
    """The most audio that the report holds."""
    seed: int = 0

    def __post_init__(self):
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise UserError(f"modes is {list(self.modes)}: use some of {', '.join(MODES)}")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise UserError("labels must name two classes at least, each once, or none at all")
        if self.language not in ("auto", *LANGUAGES):
            raise UserError(f"language is {self.language!r}: use auto, {' or '.join(LANGUAGES)}")
        if self.resamples < 1 or self.worst < 0 or self.audio_megabytes < 0:
            raise UserError("resamples must be at least 1, worst and audio_megabytes at least 0")

    def ask(self, mode: Mode, **changes) -> Ask:
        """How this evaluation asks in a mode."""
        return Ask(
            **{
                "mode": mode,
                "language": self.language,
                "decoding": self.decoding,
                "max_new_tokens": None if mode == "labels" else self.max_new_tokens,
                "prior": self.prior and mode != "explicit",
                "seed": self.seed,
                **changes,
            }
        )
