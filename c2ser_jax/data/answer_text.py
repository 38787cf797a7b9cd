"""Reads answers back: the label that is stated, the style words, the words that were quoted.

Nothing is guessed: an answer that states no emotion, or leaves open which one, has none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from c2ser_jax.data.emotion_statements import stated_emotion
from c2ser_jax.data.labels import class_index
from c2ser_jax.data.prompts import answer_language
from c2ser_jax.data.published_text import normalize_text
from c2ser_jax.data.speaking_style import Level
from c2ser_jax.data.style_statements import stated_level

_TRAINED = (
    re.compile(r'the words are "(.*?)"(?=\. |\.?$)', re.DOTALL),
    re.compile(r"内容是「(.*?)」", re.DOTALL),
)
_FREE = re.compile(
    r"(?:\b(?:says?|said|saying|words are|content is|transcript(?:ion)?(?: is)?)|"
    r"说的?是?|内容[是为]?)"
    r'\s*[,:，：]?\s*(?:"([^"]+)"|“([^”]+)”|「([^」]+)」|『([^』]+)』)',
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
_TAG = re.compile(r"<[^<>|]{1,40}>")


@dataclass(frozen=True)
class ParsedAnswer:
    """What an answer states; None: it doesn't.

    `label` is a class of the set it was read for; `named` the emotion that was stated, in the set
    or not, so an answer with `named` and without `label` is outside the set. Style levels are
    "low", "middle" or "high".
    """

    label: str | None
    named: str | None = None
    rate: Level | None = None
    pitch: Level | None = None
    loudness: Level | None = None
    transcript: str | None = None
    rationale: str | None = None

    @property
    def outside(self) -> bool:
        """Whether an emotion was stated that is none of the labels."""
        return self.label is None and self.named is not None


def parse_answer(text: str, labels: Sequence[str]) -> ParsedAnswer:
    """Reads an English or Chinese answer, in the trained templates or free.

    A `<tag>` counts before words; of several the last. Quoted words, questions, and emotions that
    are denied ("not happy", "不是开心") are no statement. Where several emotions are stated, the
    one that a concluding sentence gives counts, and none when it gives several.
    """
    text = text.strip()
    said = next((found for pattern in _TRAINED if (found := pattern.search(text))), None)
    if said:
        before, after = text[: said.start()], text[said.end() :]
        transcript, named = said[1], stated_emotion(f"{before} {after}", labels)
    else:
        free = _FREE.search(text)
        transcript = free and next(part for part in free.groups() if part is not None)
        before, after = (_FREE.sub(" ", text) if free else text), ""
        named = stated_emotion(text, labels)
    place = None if named is None else class_index(named, labels)
    return ParsedAnswer(
        label=None if place is None else labels[place],
        named=named,
        rate=stated_level(before, "rate"),
        pitch=stated_level(before, "pitch"),
        loudness=stated_level(before, "loudness"),
        transcript=(transcript or "").strip() or None,
        rationale=_rationale(after),
    )


def word_errors(reference: str, hypothesis: str | None, language: str | None) -> tuple[int, int]:
    """(errors, length of the reference) in words, or characters of Chinese; None: nothing said.

    Errors are the least number of words put in, left out and exchanged.
    """
    wanted, found = (_units(one, language) for one in (reference, hypothesis or ""))
    row = list(range(len(found) + 1))
    for i, one in enumerate(wanted, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1], len(wanted)


def _units(text: str, language: str | None) -> list[str]:
    plain = re.sub(r"[^\w\s']", " ", normalize_text(text))
    if answer_language(language) == "zh":
        return [one for one in plain if not one.isspace()]
    return plain.split()


def _rationale(text: str) -> str | None:
    """What stands between the quoted words and the sentence with the tag."""
    sentences = [one.strip() for one in _SENTENCE_END.split(text.strip(" .。")) if one.strip()]
    if sentences and _TAG.search(sentences[-1]):
        sentences = sentences[:-1]
    return " ".join(sentences) or None
