"""What is asked of the model, and the answer."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from c2ser_jax.data.prompts import LANGUAGES, Language, answer_language
from c2ser_jax.decoding.options import Mode as DecodingMode
from c2ser_jax.errors import UserError

Mode = Literal["labels", "implicit", "explicit"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class Ask:
    """How to ask; the defaults give scored labels, which nothing random decides.

    mode: "labels" scores every label as the short answer; "implicit" lets the model write the short
      answer, "explicit" the one that reasons first.
    language: of prompt and answer; "auto" takes the utterance's own, English where it has none.
    decoding: the rule that answers are written by.
    max_new_tokens: the longest written answer; None: 64 ("implicit") or 400 ("explicit"), less
      where the model's context is shorter.
    constrained: written answers are always in the label set: a short one is one of the labels'
      answers; behind free reasoning the best label is chosen.
    prior: take off the scores that the labels' short answers have for silence.
    long_audio: what to do with audio longer than the encoder hears at once: "windows" or "refuse".
    seed: of "sample".
    prompt: which wording of the prompt, 0 being the one that models are trained with.
    """

    mode: Mode = "labels"
    language: Literal["auto", "en", "zh"] = "auto"
    decoding: DecodingMode = "published"
    max_new_tokens: int | None = None
    constrained: bool = False
    prior: bool = False
    long_audio: Literal["windows", "refuse"] = "windows"
    seed: int = 0
    prompt: int = 0

    def __post_init__(self):
        """Raises UserError for a value that means nothing."""
        allowed = {
            "mode": MODES,
            "language": ("auto", *LANGUAGES),
            "decoding": get_args(DecodingMode),
            "long_audio": ("windows", "refuse"),
        }
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise UserError(f"{name} is {value!r}: use one of {', '.join(values)}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        if self.prior and self.mode == "explicit":
            raise UserError(
                "prior takes off what short answers score for silence, and mode 'explicit' scores "
                "behind its reasoning: leave one of them out"
            )

    def language_of(self, given: str | None) -> Language:
        """The language to ask in about an utterance whose own is `given`."""
        if self.language != "auto":
            return self.language
        return answer_language(given)


def make_ask(**asked: Any) -> Ask:
    """An `Ask` from keywords; language=None means "auto".

    Raises:
      UserError: a keyword that is no field, or a value that means nothing.
    """
    known = Ask.__dataclass_fields__
    for name in asked:
        if name not in known:
            raise UserError(f"there is no option {name!r}: use {', '.join(known)}")
    if asked.get("language", "") is None:
        asked["language"] = "auto"
    if asked.get("language", "auto") not in ("auto", *LANGUAGES):
        raise UserError(
            f"there are no prompts in the language {asked['language']!r}: use auto, "
            f"{' or '.join(LANGUAGES)}"
        )
    return Ask(**asked)


@dataclass(frozen=True)
class Part:
    """What was heard between `start` and `end` seconds of a long recording."""

    start: float
    end: float
    label: str | None
    probabilities: dict[str, float]
    text: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the model says about one utterance.

    label: in the label set; None where a free answer names none of it.
    probabilities: of every label, by label scoring ("explicit": behind the reasoning); sum to 1.
    text: the written answer; None in mode "labels". The words for rate, pitch and loudness, the
    transcript and the rationale are read from it, None where it has none.
    windows: of audio that was too long to be heard at once, in order; otherwise empty.
    """

    id: str
    label: str | None
    probabilities: dict[str, float]
    seconds: float
    mode: Mode = "labels"
    language: Language = "en"
    text: str | None = None
    rate: str | None = None
    pitch: str | None = None
    loudness: str | None = None
    transcript: str | None = None
    rationale: str | None = None
    windows: tuple[Part, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """The fields as JSON values; what is not there is not named."""
        row = dataclasses.asdict(self)
        row["windows"] = list(row["windows"])
        kept = ("label", "probabilities")
        return {k: v for k, v in row.items() if k in kept or v not in (None, [])}
