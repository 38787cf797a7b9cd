"""Reads answers back: the label that is stated, the style words, the words that were quoted.

Nothing is guessed: an answer that states no emotion, or leaves open which one, has none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from c2ser_jax.data.cot_text import STYLE_WORDS
from c2ser_jax.data.emotion_words import MEANINGS
from c2ser_jax.data.labels import canonical_label, class_index
from c2ser_jax.data.prompts import answer_language
from c2ser_jax.data.published_text import normalize_text
from c2ser_jax.data.speaking_style import LEVELS, Level

_TAG = re.compile(r"<([^<>|]{1,40})>")
_QUOTED = (
    re.compile(r'the words are "(.*?)"(?=\. |\.?$)', re.DOTALL),
    re.compile(r"内容是「(.*?)」", re.DOTALL),
)
_ANY_QUOTE = re.compile(r'"[^"]*"|“[^”]*”|「[^」]*」|『[^』]*』|‘[^’]*’')
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
_VERDICT = re.compile(
    r"\b(?:emotion(?:al state)?|speaker|they|he|she|it)\b[^.!?]{0,30}?\b(?:is|are|seems?|sounds?|"
    r"feels?|appears?|expresses|conveys)\b|\bemotion\s*:|(?:情感|情绪|感情)\S{0,6}?(?:是|为|：|:)"
)
_NOT = re.compile(
    r"(?:\b(?:not|no|never|nor|neither|without|hardly|isn't|aren't|wasn't|doesn't|don't|cannot|"
    r"can't|rather than|instead of)\b(?:\s+\w+){0,3}|"
    r"(?:不是|并非|并不|不太|没有|不怎么|而非|不|无|没))\s*$"
)
_LATIN = sorted((w for w in MEANINGS if w.isascii()), key=len, reverse=True)
_CHINESE = sorted((w for w in MEANINGS if not w.isascii()), key=len, reverse=True)
_WORD = re.compile(rf"\b(?:{'|'.join(_LATIN)})\b|{'|'.join(_CHINESE)}")


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

    A `<tag>` counts before words; of several the last. Quoted words, and emotions that are denied
    ("not happy", "不是开心"), are no statement. Where several emotions are stated, the one that a
    concluding sentence gives counts, and none when it gives several.
    """
    text = text.strip()
    said = next((found for pattern in _QUOTED if (found := pattern.search(text))), None)
    outside_quote = text if said is None else text[: said.start()] + " " + text[said.end() :]
    named = _named(outside_quote, labels)
    place = None if named is None else class_index(named, labels)
    before = text[: said.start()] if said else text
    return ParsedAnswer(
        label=None if place is None else labels[place],
        named=named,
        transcript=said.group(1).strip() if said else None,
        rationale=_rationale(text[said.end() :]) if said else None,
        rate=_level(before, "rate"),
        pitch=_level(before, "pitch"),
        loudness=_level(before, "loudness"),
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


def _named(text: str, labels: Sequence[str]) -> str | None:
    """The emotion that a text states: a class, a word of the vocabulary, or an unknown tag."""
    tags = [tag.strip() for tag in _TAG.findall(text) if tag.strip()]
    if tags:
        place = class_index(tags[-1], labels)
        if place is not None:
            return labels[place]
        return canonical_label(tags[-1]) or MEANINGS.get(tags[-1].lower()) or tags[-1]
    text = _ANY_QUOTE.sub(" ", text.lower())
    sentences = [one for one in _SENTENCE_END.split(text) if one.strip()]
    stated = [list(_stated(sentence, labels)) for sentence in sentences]
    everything = {name for names in stated for name in names}
    if len(everything) <= 1:
        return next(iter(everything), None)
    concluding = [
        names for sentence, names in zip(sentences, stated, strict=True)
        if names and _VERDICT.search(sentence)
    ]  # fmt: skip
    last = set(concluding[-1] if concluding else next(n for n in reversed(stated) if n))
    return last.pop() if len(last) == 1 else None


def _stated(sentence: str, labels: Sequence[str]) -> Iterator[str]:
    """The emotions that a sentence states and doesn't deny."""
    for found in _words(sentence, labels):
        if not _NOT.search(sentence[: found.start()]):
            word = found.group()
            place = class_index(word, labels)
            yield labels[place] if place is not None else MEANINGS.get(word, word)


def _words(sentence: str, labels: Sequence[str]) -> Iterator[re.Match[str]]:
    own = [re.escape(label.lower()) for label in labels if canonical_label(label) is None]
    pattern = re.compile(rf"\b(?:{'|'.join(own)})\b|{_WORD.pattern}") if own else _WORD
    return pattern.finditer(sentence)


def _level(text: str, attribute: str) -> Level | None:
    """The level whose word occurs; None for none or for several."""
    found: set[Level] = {
        level
        for words in STYLE_WORDS.values()
        for level, word in zip(LEVELS, words[attribute], strict=True)
        if re.search(rf"\b{word}\b" if word.isascii() else word, text.lower())
    }
    return found.pop() if len(found) == 1 else None


def _rationale(text: str) -> str | None:
    """What stands between the quoted words and the sentence with the tag."""
    sentences = [one.strip() for one in _SENTENCE_END.split(text.strip(" .。")) if one.strip()]
    if sentences and _TAG.search(sentences[-1]):
        sentences = sentences[:-1]
    return " ".join(sentences) or None
