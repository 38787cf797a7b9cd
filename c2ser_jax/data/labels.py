"""Emotion words: one vocabulary, the synonyms and codes of the corpora, and maps between sets."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from c2ser_jax.errors import UserError

# The words of emotion2vec+ and Emo-Emilia, then those that only some corpora have.
EMOTION2VEC_PLUS = (
    "angry disgusted fearful happy neutral other sad surprised unknown".split()
)  # order of its tokens.txt
EMO_EMILIA = ["angry", "happy", "fearful", "surprised", "neutral", "sad", "disgusted"]
VOCABULARY = (*EMOTION2VEC_PLUS, "calm", "bored", "excited", "frustrated", "contemptuous")

_SYNONYMS = {
    "angry": "anger ang wut ärger aerger rabbia 生气 愤怒 öfkeli kızgın enojo ira colère hot_anger",
    "disgusted": "disgust dis ekel disgusto 厌恶 iğrenme asco dégoût",
    "fearful": "fear fea fearfulness angst paura 恐惧 害怕 korku miedo peur scared afraid",
    "happy": "happiness hap freude gioia joy joyful 开心 高兴 快乐 mutlu felicidad alegría joie",
    "neutral": "neu neutrality neutrale 中立 中性 nötr neutre",
    "other": "oth others 其他",
    "sad": "sadness trauer tristezza 难过 悲伤 伤心 üzgün tristeza tristesse",
    "surprised": "surprise sur ps sorpresa pleasant_surprise pleasant_surprised 吃惊 惊讶 sorpresa",
    "unknown": "<unk> unk xxx unknow 未知",
    "calm": "calmness relaxed sakin 平静",
    "bored": "boredom boredem langeweile noia 无聊",
    "excited": "excitement exc excite 兴奋",
    "frustrated": "frustration fru 沮丧",
    "contemptuous": "contempt 轻蔑",
}
_CANONICAL = {word: name for name, words in _SYNONYMS.items() for word in (name, *words.split())}

# Codes that mean something only inside their corpus ("a" is anger in SAVEE, Angst in EmoDB).
CORPUS_CODES: Mapping[str, Mapping[str, str]] = {
    "aesdd": {"a": "angry", "d": "disgusted", "f": "fearful", "h": "happy", "s": "sad"},
    "emodb": {
        "w": "angry",
        "l": "bored",
        "e": "disgusted",
        "a": "fearful",
        "f": "happy",
        "t": "sad",
        "n": "neutral",
    },
    "emovo": {
        "neu": "neutral",
        "dis": "disgusted",
        "gio": "happy",
        "pau": "fearful",
        "rab": "angry",
        "sor": "surprised",
        "tri": "sad",
    },
    "ravdess": {
        "01": "neutral",
        "02": "calm",
        "03": "happy",
        "04": "sad",
        "05": "angry",
        "06": "fearful",
        "07": "disgusted",
        "08": "surprised",
    },
    "savee": {
        "a": "angry",
        "d": "disgusted",
        "f": "fearful",
        "h": "happy",
        "n": "neutral",
        "sa": "sad",
        "su": "surprised",
    },
    "urdu": {"a": "angry", "h": "happy", "n": "neutral", "s": "sad"},
}


def canonical_label(label: str, *, corpus: str | None = None) -> str | None:
    """Returns the word of `VOCABULARY` for a label as a corpus spells it, None when unknown.

    Case, spaces and hyphens don't matter; "生气/angry" (tokens.txt of emotion2vec+) and
    "<HAPPY>" (C2SER) are understood; codes of `CORPUS_CODES` count only inside their corpus.
    """
    word = label.strip().strip("<>").strip().lower().replace(" ", "_").replace("-", "_")
    codes = CORPUS_CODES.get((corpus or "").lower(), {})
    for part in (word, *word.split("/")):
        found = codes.get(part) or _CANONICAL.get(part)
        if found:
            return found
    return _CANONICAL.get(label.strip().lower())


def class_index(label: str, classes: Sequence[str], *, corpus: str | None = None) -> int | None:
    """Returns the place of a label in a class list: the same word, else the same meaning.

    None when no class, or more than one class, has that meaning.
    """
    if label in classes:
        return list(classes).index(label)
    meaning = canonical_label(label, corpus=corpus)
    if meaning is None:
        return None
    places = [
        i for i, name in enumerate(classes) if canonical_label(name, corpus=corpus) == meaning
    ]
    return places[0] if len(places) == 1 else None


def map_labels(
    labels: Iterable[str | None],
    classes: Sequence[str],
    *,
    corpora: Iterable[str | None] | None = None,
    ignore_unknown: bool = False,
    remedy: str = "",
) -> list[int]:
    """Returns the class index of every label; -1 for None and, when allowed, for unknown labels.

    Raises `UserError` with the unknown label, the nearest class and the caller's own `remedy`.
    """
    labels = list(labels)
    names = [None] * len(labels) if corpora is None else list(corpora)
    known: dict[tuple[str, str | None], int | None] = {}
    result = []
    for label, corpus in zip(labels, names, strict=True):
        if label is None:
            result.append(-1)
            continue
        if (label, corpus) not in known:
            known[label, corpus] = class_index(label, classes, corpus=corpus)
        index = known[label, corpus]
        if index is None and not ignore_unknown:
            raise UserError(unknown_label(label, classes) + (f"; or {remedy}" if remedy else ""))
        result.append(-1 if index is None else index)
    return result


def unknown_label(label: str, classes: Sequence[str]) -> str:
    """The sentence for a label that is no class."""
    near = difflib.get_close_matches(label.lower(), [c.lower() for c in classes], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Else " if near else ""
    return (
        f"the label {label!r} is not one of the classes {', '.join(classes)}; {hint}"
        "add it to the classes, or map it in the list"
    )


def label_set(labels: Iterable[str | None]) -> list[str]:
    """Sorted list of the labels that occur (unlabelled rows left out)."""
    return sorted({label for label in labels if label is not None})
