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
    "angry": "angry anger angrily mad furious fury rage enraged outraged outrage irate irritated "
    "irritation annoyed annoyance "
    "愤怒 生气 气愤 恼火 恼怒 发怒 怒气 怒火 愤慨 暴怒 火大 动怒",
    "disgusted": "disgusted disgust disgusting revulsion repulsed repulsion "
    "厌恶 恶心 反感 嫌弃 嫌恶",
    "fearful": "fearful fear afraid scared frightened fright terrified terror panic panicked "
    "恐惧 害怕 惊恐 恐慌 惊慌 畏惧 惧怕 惶恐",
    "happy": "happy happiness happily joy joyful joyous cheerful glad delighted delight pleased "
    "开心 高兴 快乐 喜悦 愉快 愉悦 欢喜 欢快",
    "neutral": "neutral neutrality neutrally emotionless unemotional 中性 中立",
    "sad": "sad sadness sadly unhappy unhappiness sorrow sorrowful grief depressed melancholic "
    "melancholy heartbroken 悲伤 难过 伤心 悲痛 忧伤 哀伤 悲哀 低落 忧郁 心碎",
    "surprised": "surprised surprise surprising astonished astonishment amazed amazement shocked "
    "startled 惊讶 吃惊 惊奇 意外 诧异 震惊 惊喜",
    "calm": "calm calmness relaxed 平静 冷静",
    "bored": "bored boredom 无聊 厌倦",
    "excited": "excited excitement 兴奋 激动",
    "frustrated": "frustrated frustration 沮丧 挫败",
    "contemptuous": "contemptuous contempt scornful 轻蔑 鄙视 鄙夷",
}
MEANINGS = {word: name for name, words in _UNDERSTOOD.items() for word in words.split()}
"""{word: canonical label}, of what an answer may say."""

_ELSEWHERE = {
    "anxious": "anxious anxiety worried worry nervous tense uneasy 焦虑 担心 担忧 紧张 忧虑",
    "ashamed": "ashamed shame embarrassed embarrassment 羞愧 尴尬 害羞",
    "confused": "confused confusion puzzled 困惑 迷茫 疑惑",
    "curious": "curious curiosity 好奇",
    "determined": "determined determination 坚定",
    "disappointed": "disappointed disappointment 失望 失落",
    "grateful": "grateful gratitude thankful 感激 感谢",
    "guilty": "guilty guilt remorse 内疚 愧疚",
    "hopeful": "hopeful optimistic 期待 乐观",
    "impatient": "impatient impatience 着急 急躁",
    "jealous": "jealous jealousy envious envy 嫉妒 羡慕",
    "lonely": "lonely loneliness 孤独 寂寞",
    "loving": "loving affectionate tender 温柔",
    "nostalgic": "nostalgic nostalgia 怀念",
    "proud": "proud pride 骄傲 自豪",
    "sarcastic": "sarcastic sarcasm ironic 讽刺 嘲讽",
    "tired": "tired weary exhausted 疲惫 疲倦",
}
ELSEWHERE = {word: name for name, words in _ELSEWHERE.items() for word in words.split()}
"""{word: what it means}, of emotions that no label of the vocabulary stands for."""


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
