"""The predict command: a row per file in every format, bad files beside good ones."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.predict import collect_clips, main
from tests.tiny_models import voice, write_tiny, write_wav

LABELS = ["angry", "unuse_0", "sad"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("m") / "model", labels=LABELS))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    good = [str(write_wav(folder / f"{i}.wav", voice(0.5 + 0.1 * i, seed=i))) for i in range(3)]
    (folder / "text.wav").write_text("no audio")
    return [good[0], str(folder / "text.wav"), *good[1:], str(folder / "none.wav")]


def test_formats_hold_the_same_rows_in_the_order_given(model, files, capsys):
    printed = {}
    for form in ("json", "jsonl", "csv", "table"):
        assert main(["--checkpoint", model, "--format", form, *files]) == 1
        printed[form] = capsys.readouterr().out
    rows = json.loads(printed["json"])
    assert [row["file"] for row in rows] == files
    assert ["error" in row for row in rows] == [False, True, False, False, True]
    assert [rows[1]["reason"], rows[4]["reason"]] == ["unreadable", "missing"]
    for row in rows:
        if "error" not in row:
            assert list(row["probabilities"]) == ["angry", "sad"]
            assert row["label"] == max(row["probabilities"], key=row["probabilities"].__getitem__)
    assert [json.loads(line) for line in printed["jsonl"].splitlines()] == rows
    table = list(csv.DictReader(io.StringIO(printed["csv"])))
    for row, cells in zip(rows, table, strict=True):
        assert cells["label"] == row.get("label", "") and cells["error"] == row.get("error", "")
        if "error" not in row:
            assert abs(float(cells["sad"]) - row["probabilities"]["sad"]) < 1e-6
    lines = printed["table"].splitlines()
    assert len(lines) == 6 and lines[2].endswith(rows[1]["error"])
    assert files[0] in lines[1] and rows[0]["label"] in lines[1]


def test_a_timeline_has_a_row_per_section(model, files, capsys):
    arguments = ["--checkpoint", model, "--timeline", "0.2", files[0]]
    assert main([*arguments, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    spans = [(row["start"], row["end"]) for row in table]
    assert spans == [("0.00", "0.50"), ("0.00", "0.20"), ("0.20", "0.40"), ("0.40", "0.50")]
    assert main([*arguments, "--format", "json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert [section["start"] for section in row["timeline"]] == [0.0, 0.2, 0.4]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_folders_and_lists_are_understood(model, files, tmp_path, capsys):
    (tmp_path / "list.scp").write_text(f"one {files[0]}\ntwo {files[2]}\n")
    assert main(["--checkpoint", model, "--format", "json", str(tmp_path / "list.scp")]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["one", "two"]


def test_lists_are_told_by_their_content_whatever_their_name(files, tmp_path):
    row = {"key": "k", "wav": files[0], "emotion": "angry"}
    (tmp_path / "data.list").write_text(json.dumps(row) + "\n")
    (tmp_path / "scp").write_text(f"one {files[0]}\ntwo {files[2]}\n")
    (tmp_path / "sound").write_bytes(Path(files[0]).read_bytes())
    names = ["data.list", "scp", "sound", "none.list"]
    clips = list(collect_clips([str(tmp_path / name) for name in names]))
    expected = ["k", "one", "two", str(tmp_path / "sound"), str(tmp_path / "none.list")]
    assert [clip.id for clip in clips] == expected
    assert clips[0].path == files[0]


def test_a_model_without_a_head_and_wrong_options_are_refused(model, files, tmp_path):
    encoder = str(write_tiny(tmp_path / "e"))
    with pytest.raises(UserError, match="no emotion head"):
        main(["--checkpoint", encoder, files[0]])
    with pytest.raises(UserError, match="--timeline"):
        main(["--checkpoint", model, "--timeline", "0", files[0]])


def test_the_process_prints_one_sentence_and_exits_with_two(tmp_path):
    command = [sys.executable, "-m", "c2ser_jax.predict", "--checkpoint", str(tmp_path), "a.wav"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
