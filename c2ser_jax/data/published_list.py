"""Rows of the `data.list` that C2SER's training reads: JSON with key, wav, txt, task and more.

A row belongs to it when it has `txt` and a `task` of tags such as `<EMOTION> <EXP_DESCRIPTION>`.
"""

import re
from typing import Any, Literal

from c2ser_jax.data.published_text import MISSING_TAG, extract_label_tag

MODES: dict[str, Literal["explicit", "implicit"]] = {
    "<EMOTION> <EXP_DESCRIPTION>": "explicit",
    "<EMOTION> <IMP_DESCRIPTION>": "implicit",
}
"""The tasks of the two training stages."""

_TASK = re.compile(r"<\w+>(\s*<\w+>)*")
_VECTORS = ("emotion_vectors", "ssl", "ssl_vec", "ssl_vecs")
_LANGUAGES = {"cn": "zh", "chinese": "zh", "english": "en"}
_DESCRIPTIVE = ("lang", "language", "speaker", "emotion", "gender")


def is_published_row(row: dict[str, Any]) -> bool:
    """Whether a JSON row is one of C2SER's list, and no other corpus's that has a task."""
    task = row.get("task")
    return "txt" in row and isinstance(task, str) and _TASK.fullmatch(task.strip()) is not None


def standard_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the fields of `Utterance`, whose `extra` gets what only C2SER's list knows.

    `txt` is what upstream trains the row to answer: it becomes `answer` there, beside `task`,
    `mode` ("explicit" or "implicit" for the two stages' tasks) and `emotion_vectors`, the file of
    its vectors. They are kept for comparisons: the stages here make both answers of label,
    transcript and voice, so a row without a transcript has none. `txt` is the transcript, too,
    where the task begins with `<TRANSCRIBE>`, without tags. The emotion is the row's own, or else
    the first tag of an `<EMOTION>` task's text. `<NONE>` is nothing, and "cn" is Chinese.
    """
    told = {name: _told(value) if name in _DESCRIPTIVE else value for name, value in row.items()}
    rest = {name: value for name, value in told.items() if value is not None}
    answer, task = str(rest.pop("txt", "")), str(rest.pop("task")).strip()
    extra: dict[str, Any] = {"task": task, "answer": answer}
    if task in MODES:
        extra["mode"] = MODES[task]
    for name in _VECTORS:
        if isinstance(path := rest.pop(name, None), str):
            extra.setdefault("emotion_vectors", path)
    language = rest.pop("lang", None) or rest.pop("language", None)
    if language:
        rest["language"] = _LANGUAGES.get(language.lower(), language.lower())
    if task.startswith("<TRANSCRIBE>"):
        rest["text"] = re.sub(r"\s*<[^<>]+>\s*", " ", answer).strip()
    tag = extract_label_tag(answer)
    if not rest.get("emotion") and "<EMOTION>" in task and tag != MISSING_TAG:
        rest["emotion"] = tag[1:-1].strip()
    given = rest.get("extra") or {}
    rest["extra"] = {**extra, **given} if isinstance(given, dict) else given
    return rest


def _told(value: Any) -> str | None:
    """What a tag or word says; None for those that say nothing."""
    word = str(value or "").strip().strip("<>").strip()
    return word if word.lower() not in ("", "none", "null") else None
