"""What the language model is asked, in English and Chinese.

The English wordings with index 0 are the released model's own (`prompt_config.yaml` of C2SER);
Chinese ones, and the other wordings that measure how stable answers are, are this library's.
"""

import difflib
import re
from typing import Literal

from c2ser_jax.errors import UserError

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_LANGUAGE_NAMES: dict[Language, str] = {
    "en": "en eng english",
    "zh": "zh zho chi cn cmn chinese mandarin yue cantonese 中文 汉语 普通话",
}
# ISO 639-1, and the names and longer codes that lists use.
_KNOWN = frozenset(
    (
        "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv "
        "cy da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr "
        "ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw "
        "ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv "
        "ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr "
        "ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi "
        "yo za zh zu arabic bengali dutch nld estonian french fra fre german deu ger greek "
        "ell hindi hin indonesian italian ita japanese jpn korean kor persian farsi polish "
        "pol portuguese por russian rus spanish spa swedish swe thai turkish tur ukrainian urdu "
        "urd vietnamese vie und mul other"
    ).split()
) | frozenset(" ".join(_LANGUAGE_NAMES.values()).split())
_LANGUAGE_OF: dict[str, Language] = {
    word: language for language, words in _LANGUAGE_NAMES.items() for word in words.split()
}

WORDINGS: dict[str, dict[Language, tuple[str, ...]]] = {
    "explicit": {
        "en": (
            "Please describe the speaking style, content, and the speaker's emotional state of "
            "this speech.",
            "Describe how this person speaks, what they say, and which emotion they express.",
            "Listen to the recording: tell its speaking style and its words, then the emotion.",
        ),
        "zh": (
            "请描述这段语音的说话风格、内容以及说话人的情感状态。",
            "请说明这个人怎样说话、说了什么，并判断其情感。",
            "请听这段录音：先说出说话风格和内容，再说出情感。",
        ),
    },
    "implicit": {
        "en": (
            "Please consider the speaking style, content, and directly provide the speaker's "
            "emotion in this speech.",
            "Which emotion does the speaker express? Mind both voice and words, answer directly.",
            "Judge by how it is said and what is said: name the speaker's emotion.",
        ),
        "zh": (
            "请结合说话风格和内容，直接给出这段语音中说话人的情感。",
            "说话人表达了什么情感？请结合声音和内容直接回答。",
            "请根据怎样说和说什么判断，直接说出说话人的情感。",
        ),
    },
}


def prompt(mode: str, language: str | None, *, published: bool = False) -> str:
    """The usual wording of a mode's prompt in a row's language; `published`: English for all.

    Raises:
      UserError: a mode that is none of `WORDINGS`.
    """
    return _wordings(mode)["en" if published else answer_language(language)][0]


def paraphrases(mode: str, language: str | None) -> tuple[str, ...]:
    """The other wordings of a mode's prompt. Raises `UserError` for an unknown mode."""
    return _wordings(mode)[answer_language(language)][1:]


def answer_language(language: str | None) -> Language:
    """The language that a row is asked and answered in: Chinese for Chinese, else English."""
    return _LANGUAGE_OF.get(_language_word(language), "en")


def check_language(language: str | None) -> None:
    """Raises `UserError` for the name of a language that nobody knows; None is none."""
    word = _language_word(language)
    if word and word not in _KNOWN:
        near = difflib.get_close_matches(word, sorted(_KNOWN), n=1, cutoff=0.7)
        hint = f"did you mean {near[0]!r}? Else " if near else ""
        raise UserError(
            f"its language {language!r} is not known; {hint}give a code such as en or zh, or none"
        )


def _language_word(language: str | None) -> str:
    """Lower case, without brackets and region: "<CN>", "en-US" and "zh_Hans" are cn, en, zh."""
    return re.split(r"[-_]", (language or "").strip().strip("<>").lower())[0].strip()


def _wordings(mode: str) -> dict[Language, tuple[str, ...]]:
    if mode not in WORDINGS:
        raise UserError(f"there is no prompt for the mode {mode!r}: use {' or '.join(WORDINGS)}")
    return WORDINGS[mode]
