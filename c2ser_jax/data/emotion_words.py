"""Words for emotions in answers: the one that is written per label, and all that are understood."""

from c2ser_jax.data.labels import VOCABULARY, canonical_label
from c2ser_jax.data.prompts import Language

# canonical label: (English noun, Chinese word in a tag)
_WRITTEN = {
    "angry": ("anger", "愤怒"),
    "disgusted": ("disgust", "厌恶"),
    "fearful": ("fear", "恐惧"),
    "happy": ("happiness", "开心"),
    "neutral": ("neutrality", "中性"),
    "other": ("another emotion", "其他"),
    "sad": ("sadness", "悲伤"),
    "surprised": ("surprise", "惊讶"),
    "unknown": ("an unknown emotion", "未知"),
    "calm": ("calmness", "平静"),
    "bored": ("boredom", "无聊"),
    "excited": ("excitement", "兴奋"),
    "frustrated": ("frustration", "沮丧"),
    "contemptuous": ("contempt", "轻蔑"),
}
assert set(_WRITTEN) == set(VOCABULARY)

_UNDERSTOOD = {
    "angry": "angry anger angrily mad furious fury rage irritated annoyed annoyance outraged "
    "愤怒 生气 气愤 恼火 恼怒 发怒 怒气",
    "disgusted": "disgusted disgust disgusting revulsion repulsed 厌恶 恶心 反感 嫌弃",
    "fearful": "fearful fear afraid scared frightened terrified anxious anxiety terror panic "
    "恐惧 害怕 惊恐 恐慌 担心",
    "happy": "happy happiness happily joy joyful joyous cheerful glad delighted delight pleased "
    "开心 高兴 快乐 喜悦 愉快 愉悦 欢喜",
    "neutral": "neutral neutrality emotionless unemotional 中性 中立",
    "sad": "sad sadness sadly unhappy sorrow sorrowful depressed melancholic melancholy grief "
    "悲伤 难过 伤心 悲痛 忧伤 哀伤",
    "surprised": "surprised surprise surprising astonished astonishment amazed amazement shocked "
    "惊讶 吃惊 惊奇 意外 诧异",
    "calm": "calm calmness relaxed 平静 冷静",
    "bored": "bored boredom boring 无聊 厌倦",
    "excited": "excited excitement 兴奋 激动",
    "frustrated": "frustrated frustration 沮丧 挫败",
    "contemptuous": "contemptuous contempt 轻蔑 鄙视",
}
MEANINGS = {word: name for name, words in _UNDERSTOOD.items() for word in words.split()}
"""{word: canonical label}, of what an answer may say."""


def label_word(label: str, language: Language) -> str:
    """The word that stands in an answer's tag; a label outside the vocabulary stands as it is."""
    name = canonical_label(label)
    if name is None:
        return label.strip().strip("<>").lower()
    return name if language == "en" else _WRITTEN[name][1]


def label_noun(label: str, language: Language) -> str:
    """The word of a rationale."""
    name = canonical_label(label)
    if name is None:
        return label.strip().strip("<>").lower()
    return _WRITTEN[name][0 if language == "en" else 1]
