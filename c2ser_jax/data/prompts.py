"""What the language model is asked, in English and Chinese.

The English wordings with index 0 are the released model's own (`prompt_config.yaml` of C2SER);
Chinese ones, and the other wordings that measure how stable answers are, are this library's.
"""

from typing import Literal

from c2ser_jax.errors import UserError

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_LANGUAGE_NAMES: dict[Language, str] = {
    "en": "en eng english",
    "zh": "zh zho chi cn cmn chinese mandarin 中文 汉语 普通话",
}
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
    return _LANGUAGE_OF.get((language or "").strip().strip("<>").lower(), "en")


def _wordings(mode: str) -> dict[Language, tuple[str, ...]]:
    if mode not in WORDINGS:
        raise UserError(f"there is no prompt for the mode {mode!r}: use {' or '.join(WORDINGS)}")
    return WORDINGS[mode]
