"""Which speaking rate, pitch and loudness a free text states, in English or Chinese."""

import re

from c2ser_jax.data.answer_templates import STYLE_WORDS
from c2ser_jax.data.speaking_style import LEVELS, Level

_VERY = r"(?:较为|比较|相对|非常|偏|很|较|略|稍|有点|极|太|十分|更|都|是)*"
_RATE = r"(?:rate|pace|speed|tempo)"
_LOUDNESS = r"(?:volume|loudness)"

# What else is said for a level; words of the trained answers come first.
_SYNONYMS = {
    ("rate", "low"): rf"slow(?:ly)?|unhurried|leisurely|语速{_VERY}(?:慢|缓|迟缓)|说得{_VERY}慢",
    ("rate", "middle"): rf"(?:moderate|medium|normal|average|steady) (?:speaking )?{_RATE}|"
    rf"{_RATE} (?:is|was) (?:moderate|medium|normal|average)|语速{_VERY}(?:适中|中等|正常|一般)",
    ("rate", "high"): rf"fast|quick(?:ly)?|rapid(?:ly)?|hurried(?:ly)?|语速{_VERY}(?:快|急)|"
    rf"说得{_VERY}快",
    ("pitch", "low"): rf"(?:low|deep)[- ]?pitch(?:ed)?|(?:low|deep) voice|pitch (?:is|was) low|"
    rf"音[调高]{_VERY}低|声音{_VERY}低沉",
    ("pitch", "middle"): r"(?:medium|moderate|normal|average|mid)[- ]?pitch(?:ed)?|"
    rf"pitch (?:is|was) (?:medium|moderate|normal|average)|音[调高]{_VERY}(?:适中|中等|正常|一般)",
    ("pitch", "high"): rf"(?:high|raised)[- ]?pitch(?:ed)?|high voice|shrill|pitch (?:is|was) high|"
    rf"音[调高]{_VERY}高|声音{_VERY}尖",
    ("loudness", "low"): rf"quiet(?:ly)?|soft(?:ly)?|faint(?:ly)?|whisper\w*|low {_LOUDNESS}|"
    rf"{_LOUDNESS} (?:is|was) low|音量{_VERY}[小低轻]|声音{_VERY}[小轻]",
    ("loudness", "middle"): rf"(?:moderate|medium|normal|average) {_LOUDNESS}|"
    rf"{_LOUDNESS} (?:is|was) (?:moderate|medium|normal|average)|"
    rf"音量{_VERY}(?:适中|中等|正常|一般)",
    ("loudness", "high"): rf"loud(?:ly)?|shout\w*|yell\w*|high {_LOUDNESS}|"
    rf"{_LOUDNESS} (?:is|was) high|音量{_VERY}[大高]|声音{_VERY}(?:大|响|洪)",
}  # fmt: skip
_PATTERNS = {
    key: re.compile(rf"(?<![a-z-])(?:{found})(?![a-z])") for key, found in _SYNONYMS.items()
}
_TRAINED = re.compile(r"the speech is ([^.]*)\.")
_DENIED = re.compile(
    r"(?:\b(?:not|no|never|neither|nor)\b|n't\b)(?: +\w+){0,3} *$|[不没非]\S{0,2}$"
)


def stated_level(text: str, attribute: str) -> Level | None:
    """The level of an attribute (rate, pitch, loudness) that a text states.

    None: it states none or several. A sentence in the trained words counts alone.
    """
    text = text.lower()
    trained = _TRAINED.search(text)
    said = re.split(r", | and ", trained[1]) if trained else []
    words = dict(zip(LEVELS, STYLE_WORDS["en"][attribute], strict=True))
    found: list[Level] = [
        level for level in LEVELS
        if (words[level] in said if trained else _is_stated(text, attribute, level))
    ]  # fmt: skip
    return found[0] if len(found) == 1 else None


def _is_stated(text: str, attribute: str, level: Level) -> bool:
    places = _PATTERNS[attribute, level].finditer(text)
    return any(not _DENIED.search(text, 0, place.start()) for place in places)
