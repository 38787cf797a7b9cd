"""Rows of C2SER's own list become utterances that say what they are trained to answer."""

import dataclasses
import json
from pathlib import Path

import pytest

from c2ser_jax.data.cot_text import check_row
from c2ser_jax.data.labels import canonical_label
from c2ser_jax.data.manifest import read_manifest, write_manifest
from c2ser_jax.errors import UserError

EXPLICIT = {
    "key": "a", "wav": "wav/a.wav", "txt": "He shouts. So the emotion is <ANGRY>.", "lang": "<EN>",
    "task": "<EMOTION> <EXP_DESCRIPTION>", "speaker": "<NONE>", "emotion": "<NONE>",
    "ssl": "vectors/a.npy", "extra": {"duration": 2.5},
}  # fmt: skip
IMPLICIT = {
    "key": "b", "wav": "wav/b.wav", "txt": "情感是<愤怒>", "lang": "cn", "emotion": "<SAD>",
    "task": "<EMOTION> <IMP_DESCRIPTION>", "speaker": "s1",
}  # fmt: skip
TRANSCRIBED = {
    "key": "c", "wav": "wav/c.wav", "txt": "hello there <SAD>", "task": "<TRANSCRIBE> <EMOTION>"
}  # fmt: skip


def read(folder, *rows):
    (folder / "data.list").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(folder / "data.list")


def test_tasks_answers_and_vectors_are_kept_and_fields_are_told_apart(tmp_path):
    explicit, implicit, transcribed = read(tmp_path, EXPLICIT, IMPLICIT, TRANSCRIBED)
    assert explicit.extra == {
        "task": "<EMOTION> <EXP_DESCRIPTION>",
        "mode": "explicit",
        "answer": EXPLICIT["txt"],
        "emotion_vectors": str(tmp_path / "vectors/a.npy"),
        "duration": 2.5,
    }
    assert (explicit.label, explicit.speaker, explicit.language) == ("ANGRY", None, "en")
    assert explicit.text is None  # the answer is no transcript
    assert (implicit.label, implicit.speaker, implicit.language) == ("SAD", "s1", "zh")
    assert implicit.extra["mode"] == "implicit" and implicit.extra["answer"] == "情感是<愤怒>"
    assert (transcribed.text, transcribed.label) == ("hello there", "SAD")
    assert "mode" not in transcribed.extra
    assert [canonical_label(str(row.label)) for row in (explicit, implicit)] == ["angry", "sad"]


def test_a_rows_own_answer_is_said_not_to_be_trained_on(tmp_path):
    row, transcribed = read(tmp_path, EXPLICIT, TRANSCRIBED)
    with pytest.raises(UserError, match="is empty .its own `answer` is not what is trained on.; g"):
        check_row(row)
    check_row(dataclasses.replace(row, text="no"))
    check_row(dataclasses.replace(transcribed, language="en"))


def test_our_own_layout_keeps_what_was_read(tmp_path):
    rows = read(tmp_path, EXPLICIT, IMPLICIT, TRANSCRIBED)
    write_manifest(tmp_path / "own.jsonl", rows)
    assert read_manifest(tmp_path / "own.jsonl") == rows


def test_a_task_that_is_no_tag_is_another_corpus(tmp_path):
    (row,) = read(tmp_path, {"key": "d", "wav": "d.wav", "txt": "hi", "task": "category"})
    assert row.text == "hi" and row.extra == {"task": "category"}
    (row,) = read(tmp_path, {"key": "d", "wav": "d.wav", "emo": "sad", "task": "<EMOTION>"})
    assert row.label == "sad" and Path(row.path) == tmp_path / "d.wav"
    with pytest.raises(UserError, match="'extra' must be an object"):
        read(tmp_path, {**EXPLICIT, "extra": "no"})
