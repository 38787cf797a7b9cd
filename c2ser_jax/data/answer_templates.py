"""The sentences of explicit and implicit answers, in English and Chinese: one template each.

    the speech is fast, high-pitched and loud. the words are "oh no". a fast, loud voice and such
    words point to fear. the emotion is<fearful>.

Texts are normalised as the released model's were; `data/answer_text.py` reads them back.
"""

from collections.abc import Mapping, Sequence

from c2ser_jax.data.emotion_words import label_noun, label_word
from c2ser_jax.data.prompts import Language, answer_language
from c2ser_jax.data.published_text import normalize_text
from c2ser_jax.data.speaking_style import ATTRIBUTES, LEVELS, Level
from c2ser_jax.errors import UserError

STYLE_WORDS: dict[Language, dict[str, tuple[str, str, str]]] = {
    "en": {
        "rate": ("slow", "moderate", "fast"),
        "pitch": ("low-pitched", "medium-pitched", "high-pitched"),
        "loudness": ("quiet", "normal", "loud"),
    },
    "zh": {
        "rate": ("语速慢", "语速中等", "语速快"),
        "pitch": ("音调低", "音调中等", "音调高"),
        "loudness": ("音量小", "音量中等", "音量大"),
    },
}
"""Words of (low, middle, high); none of them occurs for another attribute."""


def implicit_answer(label: str, language: str | None) -> str:
    """The short answer that names a label."""
    chosen = answer_language(language)
    word = label_word(label, chosen)
    return normalize_text(f"the emotion is <{word}>." if chosen == "en" else f"情感是<{word}>。")


def explicit_answer(
    label: str,
    language: str | None,
    transcript: str,
    levels: Mapping[str, Level | None],
    rationale: str = "",
) -> str:
    """The answer that reasons first and ends with exactly the short one.

    Style words that are not known are left out; an empty `rationale` is made of label and style.

    Raises:
      UserError: the transcript has no words.
    """
    chosen = answer_language(language)
    if not has_words(transcript):
        raise UserError("an explicit answer quotes the words, and the transcript is empty")
    said = " ".join(transcript.split())
    said = said.replace('"', "'").replace("「", "『").replace("」", "』")
    reason = " ".join(rationale.split()) or default_rationale(label, chosen, levels)
    words = [w for name in ATTRIBUTES if (w := style_word(name, levels.get(name), chosen))]
    if chosen == "en":
        style = f"the speech is {_enumerate(words)}. " if words else ""
        text = f'{style}the words are "{said}". {_ended(reason, ".")} '
    else:
        style = "，".join(words) + "。" if words else ""
        text = f"{style}内容是「{said}」。{_ended(reason, '。')}"
    return normalize_text(text) + implicit_answer(label, chosen)


def default_rationale(label: str, language: Language, levels: Mapping[str, Level | None]) -> str:
    """A sentence that names the emotion and what in the voice stands out."""
    noun = label_noun(label, language)
    telling = [
        w for name in ATTRIBUTES if levels.get(name) not in (None, "middle")
        and (w := style_word(name, levels.get(name), language))
    ]  # fmt: skip
    if language == "zh":
        return f"{'、'.join(telling) or '平常的声音'}和这样的内容说明{noun}。"
    voice = f"a {', '.join(telling)} voice" if telling else "an even voice"
    return f"{voice} and such words point to {noun}."


def style_word(attribute: str, level: Level | None, language: Language) -> str | None:
    """The word for an attribute's level; None for none."""
    return None if level is None else STYLE_WORDS[language][attribute][LEVELS.index(level)]


def has_words(text: str | None) -> bool:
    """Whether a transcript has anything to quote: a letter or a digit in any script."""
    return any(letter.isalnum() for letter in text or "")


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _ended(sentence: str, mark: str) -> str:
    return sentence if sentence.rstrip()[-1:] in ".!?。！？" else sentence.rstrip() + mark
