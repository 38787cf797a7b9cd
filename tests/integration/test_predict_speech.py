"""The predict command with a C2SER: every mode and format, from one directory and wav files."""

import csv
import io
import json
import subprocess
import sys

import pytest

from c2ser_jax.data.labels import EMO_EMILIA
from c2ser_jax.errors import UserError
from c2ser_jax.predict import main, write_rows
from tests.tiny_c2ser import write_tiny_c2ser
from tests.tiny_models import voice, write_tiny, write_wav


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_c2ser(tmp_path_factory.mktemp("m") / "model"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    good = [str(write_wav(folder / f"{i}.wav", voice(0.6 + 0.1 * i, seed=i))) for i in range(2)]
    (folder / "text.wav").write_text("no audio")
    return [good[0], str(folder / "text.wav"), good[1]]


def printed(capsys, *arguments, code):
    assert main(list(arguments)) == code
    return capsys.readouterr().out


def test_scored_labels_in_every_format(model, files, capsys):
    rows = json.loads(printed(capsys, "--checkpoint", model, "--format", "json", *files, code=1))
    found = {}
    for form in ("jsonl", "csv", "table"):
        write_rows(rows, EMO_EMILIA, form, stream := io.StringIO())
        found[form] = stream.getvalue()
    assert [row["file"] for row in rows] == files
    assert rows[1]["reason"] == "unreadable" and "error" in rows[1]
    for row in (rows[0], rows[2]):
        assert list(row["probabilities"]) == EMO_EMILIA and row["mode"] == "labels"
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1) and "text" not in row
    assert [json.loads(line) for line in found["jsonl"].splitlines()] == rows
    cells = list(csv.DictReader(io.StringIO(found["csv"])))
    assert cells[0]["label"] == rows[0]["label"] and cells[1]["error"] == rows[1]["error"]
    assert "transcript" not in cells[0] and len(found["table"].splitlines()) == 4


def test_written_answers_have_their_words(model, files, capsys):
    options = ["--mode", "explicit", "--decoding", "greedy", "--max-new-tokens", "12"]
    command = ["--checkpoint", model, *options, "--language", "zh", "--constrained"]
    rows = json.loads(printed(capsys, *command, "--format", "json", files[0], code=0))
    assert rows[0]["label"] in EMO_EMILIA and rows[0]["text"].endswith("。")
    assert rows[0]["language"] == "zh"
    table = printed(capsys, *command, "--format", "csv", files[0], code=0)
    [cells] = csv.DictReader(io.StringIO(table))
    assert {"rate", "pitch", "loudness", "transcript", "rationale"} <= set(cells)
    table = printed(capsys, "--checkpoint", model, *options, files[0], code=0)
    assert "none" in table.splitlines()[1]  # a free answer of random weights names no label
    assert table.splitlines()[0].endswith("text") and len(table.splitlines()) == 2


def test_no_label_is_none_in_tables_and_null_in_json():
    row = {"file": "a.wav", "id": "a", "label": None, "probabilities": {"sad": 1.0}, "seconds": 1.0}
    found = {form: io.StringIO() for form in ("csv", "table", "jsonl")}
    for form, stream in found.items():
        write_rows([row, {"file": "b.wav", "id": "b", "error": "bad"}], ["sad"], form, stream)
    told = list(csv.DictReader(io.StringIO(found["csv"].getvalue())))
    assert [one["label"] for one in told] == ["none", ""]
    assert "none" in found["table"].getvalue()
    assert json.loads(found["jsonl"].getvalue().splitlines()[0])["label"] is None


def test_blanks_between_labels_mean_nothing(model, files, capsys):
    command = ["--checkpoint", model, "--format", "json", "--labels", "sad, happy ,angry"]
    [row] = json.loads(printed(capsys, *command, files[0], code=0))
    assert list(row["probabilities"]) == ["sad", "happy", "angry"]


def test_a_lists_own_language_counts_unless_another_is_asked_for(model, files, tmp_path, capsys):
    rows = [{"id": "one", "path": files[0], "language": "zh"}, {"id": "two", "path": files[0]}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--checkpoint", model, "--format", "json", str(tmp_path / "list.jsonl")]
    listed, plain = json.loads(printed(capsys, *command, code=0))
    assert listed["language"] == "zh" and plain["language"] == "en"
    asked = json.loads(printed(capsys, *command, "--language", "zh", code=0))
    for one in asked:
        assert one["language"] == "zh"
        assert listed["probabilities"] == pytest.approx(one["probabilities"], abs=1e-6)
    assert plain["probabilities"] != pytest.approx(listed["probabilities"], abs=1e-3)


def test_sections_of_long_audio_are_windows(model, tmp_path, capsys):
    long = str(write_wav(tmp_path / "long.wav", voice(2.6, seed=4)))
    command = ["--checkpoint", model, "--timeline", "1", "--format", "csv"]
    table = list(csv.DictReader(io.StringIO(printed(capsys, *command, long, code=0))))
    assert [row["file"] for row in table] == [long] * len(table) and len(table) >= 4
    assert float(table[0]["end"]) == 2.6 and float(table[1]["start"]) == 0.0
    for before, after in zip(table[1:], table[2:], strict=False):
        assert before["end"] == after["start"]
    assert table[-1]["end"] == "2.60"
    refused = printed(capsys, *command, "--long-audio", "refuse", long, code=1)
    assert "are more than the 1 s that are heard at once" in refused


def test_wrong_options_are_one_sentence(model, files, tmp_path):
    encoder = str(write_tiny(tmp_path / "e", labels=["angry", "sad"]))
    for arguments, sentence in (
        ([model, "--mode", "aloud"], "mode is 'aloud': use one of labels, implicit, explicit"),
        ([model, "--language", "fr"], "no prompts in the language 'fr'"),
        ([model, "--labels", "happy,hapyp"], "'hapyp' is not one of the classes"),
        ([model, "--mode", "implicit", "--max-new-tokens", "2000"], "positions"),
        ([encoder, "--mode", "explicit"], "kind 'emotion2vec_classifier', which predicts labels"),
    ):
        with pytest.raises(UserError, match=sentence):
            main(["--checkpoint", arguments[0], *arguments[1:], files[0]])


def test_the_process_prints_one_sentence_and_exits_with_two(model):
    command = [sys.executable, "-m", "c2ser_jax.predict", "--checkpoint", model]
    done = subprocess.run([*command, "--mode", "aloud", "a.wav"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: mode is") and len(done.stderr.splitlines()) == 1
