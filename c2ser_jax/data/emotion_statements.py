"""Which emotion a free text states, in English or Chinese: denied, doubted and asked ones aside.

Every emotion word of a text weighs 2 in a verdict ("the emotion is", "therefore"), 0 in a clause
said aside ("because"), else 1. Of the heaviest words those of the last sentence count, and only
when they agree.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from c2ser_jax.data.emotion_words import ELSEWHERE, MEANINGS
from c2ser_jax.data.labels import canonical_label, class_index

_TAG = re.compile(r"<([^<>|]{1,40})>")
_SENTENCE = re.compile(r"[^.!?;。！？；\n]+[.!?;。！？；\n]*")
_QUOTE = re.compile(r'"([^"]*)"|“([^”]*)”|「([^」]*)」|『([^』]*)』|‘([^’]*)’')
_QUOTING = re.compile(r"(?:\b(?:say|says|said|saying|asks?|shouts?|words are)|说|道|问|内容是)\W*$")

# Phrases whose words would mislead, and what they amount to.
_PHRASES = tuple(
    (re.compile(pattern), meaning)
    for pattern, meaning in (
        (r"\b(?:anything but|rather than|instead of|far from|other than|as opposed to)\b", "not"),
        (r"\b(?:no longer|unlikely to be|less)\b", "not"),
        (r"\bmore or (?:not|less)\b|\bnothing but\b|\bwithout (?:a )?doubt\b", " "),
        (r"\bnot (?:only|just|merely|simply)\b|\bno (?:doubt|question|wonder)\b", " "),
        (r"\bi(?:'m| am) (?:afraid|sorry|glad|happy|pleased)\b", "i"),
        (r"\b(?:happy|glad|pleased|delighted) to (?:help|assist|answer)\b|\bmad about\b", " "),
        (r"不(?:仅|但|只|光|单|由得?|禁|断|止|得不)|[忍禁]不住", " "),
        (r"不耐烦", "急躁"),
        (r"不安", "焦虑"),
        (r"不(?:满|悦|屑|解|甘|幸|舒服|平|客气|停|已|少|错|爽|快)|无[比奈]|非常|特别", "□"),
        (r"很?高兴(?=为|帮|能|回答)|生气(?=勃勃|盎然|蓬勃)", "□"),
        (r"不过", "但"),
    )
)
_BOUNDARY = re.compile(
    r"[,，()（）]|(?<!emotion)(?<!state)(?<!情感)(?<!情绪)(?<!状态)[:：]|\b(?:but|however|yet|instead|while|though|although|whereas|because|so|"
    r"therefore|then)\b|\band\b(?=\s+(?:he|she|they|it|the|is|are|sounds?|seems?|feels?|appears?)\b)|"
    r"而是|但是|但|却|只是|反而|然而|可是|其实|因此|所以|因为|而且"
)
_ASIDE = re.compile(r"because|while|though|although|whereas|因为|[(（]")
_DENIED = re.compile(
    r"(?:\b(?:not|no|never|nor|neither|none|without|hardly|barely|lacks?|lacking|cannot)\b|n't\b)"
    r"(?:\W+[\w'-]+){0,5}\W*$|\bthan\s*$|(?:不|没|无(?!聊)|非|别|未|谈不上|算不上)[^，。]{0,10}$"
)
_DENIED_AFTER = re.compile(
    r"\s*(?:(?:is|are|was|were|seems?)\s+(?:not|absent|unlikely|excluded|ruled)|can be ruled|"
    r"isn't|aren't|不起来|不了|的可能性(?:很?小|不大|低))"
)
_OR_SO = re.compile(r"\s*[,，、/]?\s*(?:or|nor|and|或者?|和|也不|也没有?)?\s*(?:even\s+)?$")
_UNDECIDED = re.compile(
    r"\b(?:whether|unclear|can(?:'t|not) (?:tell|say|determine|judge)|if)\b|"
    r"无法|难以(?:判断|确定)|不确定|是否|还是|如果|要是"
)
_CONCLUSION = re.compile(
    r"\b(?:therefore|thus|hence|overall|conclu\w+|in summary|in short|in the end|finally|answer)\b|"
    r"综上|总之|总的来说|总体|因此|所以|最终|结论|答案|由此可见"
)
_VERDICT = re.compile(
    r"\bemotion(?:al\s+(?:state|tone))?\b.{0,40}?(?:\b(?:is|was|are|be|seems?|appears?|sounds?)\b|"
    r'\W*:)|(?:情感|情绪|感情|心情)\S{0,8}?(?:是|为|：|:)|["\s{]emotion"?\s*:'
)
_UNKNOWN_WORD = re.compile(
    r"(?:\bemotion(?:al state)?(?: of the speaker)?(?: is|:) (?:an? )?([a-z]{3,20})|"
    r"(?:情感|情绪)(?:是|为|：|:)([^\W\d_不没无a-z]{1,4}))\s*[.!。！]?\s*$"
)
_NO_EMOTION = frozenset(
    "unclear uncertain undetermined ambiguous mixed none nothing conveyed expressed present absent "
    "hidden subtle strong intense positive negative 未知 多变 复杂 积极 消极 正面 负面 混合".split()
)


@dataclass(frozen=True)
class _Statement:
    name: str
    weight: int
    sentence: int


def stated_emotion(text: str, labels: Sequence[str]) -> str | None:
    """The emotion that a text states: a label, a word for another emotion, or None.

    A `<tag>` counts before words; of several the last. Quoted words are no statement, unless one
    emotion is all that is quoted.
    """
    tags = [tag.strip() for tag in _TAG.findall(text) if tag.strip()]
    if tags:
        return _name_of(tags[-1], labels)
    sentences = [found.group() for found in _SENTENCE.finditer(_plain(text, labels))]
    for words in (_pattern(MEANINGS, labels), _pattern(ELSEWHERE, ())):
        statements = [
            one for place, sentence in enumerate(sentences)
            for one in _statements(sentence, place, words, labels)
        ]  # fmt: skip
        if statements:
            return _agreed(statements, labels)
    found = _UNKNOWN_WORD.search(sentences[-1]) if sentences else None
    word = found and (found[1] or found[2])
    if not word or word in _NO_EMOTION or word in MEANINGS or word in ELSEWHERE:
        return None
    return _name_of(word, labels)


def _agreed(statements: Sequence[_Statement], labels: Sequence[str]) -> str | None:
    """What the heaviest statements of the last sentence with such agree on."""
    most = max(one.weight for one in statements)
    heaviest = [one for one in statements if one.weight == most]
    names = {one.name for one in heaviest if one.sentence == heaviest[-1].sentence}
    names = names & set(labels) or names
    return names.pop() if len(names) == 1 else None


def _statements(
    sentence: str, place: int, words: re.Pattern[str], labels: Sequence[str]
) -> Iterator[_Statement]:
    """What a sentence states and doesn't deny; a question states nothing."""
    if sentence.rstrip()[-1:] in ("?", "？"):
        return
    undecided = _UNDECIDED.search(sentence)
    concluded = _CONCLUSION.search(sentence)
    clauses, last = [(0, ""), *((b.end(), b[0]) for b in _BOUNDARY.finditer(sentence))], None
    for found in words.finditer(sentence):
        start, opening = [one for one in clauses if one[0] <= found.start()][-1]
        before = sentence[start : found.start()]
        denied = bool(_DENIED.search(before) or _DENIED_AFTER.match(sentence, found.end()))
        denied |= last is not None and bool(_OR_SO.fullmatch(sentence, last, found.start()))
        last = found.end() if denied else None
        if denied or (undecided and undecided.start() < found.start()):
            continue
        is_verdict = bool(_VERDICT.search(before + found[0]))
        is_verdict |= concluded is not None and concluded.start() < found.start()
        weight = 0 if _ASIDE.match(opening) else 2 if is_verdict else 1
        yield _Statement(_name_of(found[0], labels), weight, place)


def _name_of(word: str, labels: Sequence[str]) -> str:
    """A label, else a word of the vocabulary, else what was said."""
    word = word.lower()
    meaning = MEANINGS.get(word) or ELSEWHERE.get(word)
    for name in (word, meaning):
        if name and (place := class_index(name, labels)) is not None:
            return labels[place]
    return meaning or canonical_label(word) or word


def _pattern(words: dict[str, str], labels: Sequence[str]) -> re.Pattern[str]:
    """Matches one of the words, or a label that the vocabulary doesn't know."""
    own = [label.lower() for label in labels if canonical_label(label) is None]
    every = sorted({*words, *own}, key=lambda word: (-len(word), word))
    latin = "|".join(re.escape(word) for word in every if word[0].isascii())
    other = "|".join(re.escape(word) for word in every if not word[0].isascii())
    return re.compile(rf"\b(?:{latin})\b" + (f"|{other}" if other else ""))


def _plain(text: str, labels: Sequence[str]) -> str:
    """Lower case, without what is quoted and without misleading phrases."""
    text = text.lower().replace("’", "'").replace("*", "")

    def unquote(found: re.Match[str]) -> str:
        inside = next(part for part in found.groups() if part is not None).strip()
        said = _QUOTING.search(text, 0, found.start())
        known = inside in MEANINGS or class_index(inside, labels) is not None
        return inside if inside == "emotion" or (known and not said) else " "

    text = _QUOTE.sub(unquote, text)
    for pattern, meaning in _PHRASES:
        text = pattern.sub(meaning, text)
    return text
