"""Files that only fail when they are decoded: left out, listed, and too many of them stop a run."""

import pytest
import soundfile

from c2ser_jax.errors import UserError
from tests.integration.tiny_corpus import read_rows, run, write_corpus
from tests.tiny_models import voice


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Settings of a run whose every third file promises audio and holds a NaN."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write_corpus(folder, ["angry", "happy", "sad"])
    for path in folder.glob("audio/*-1.wav"):
        broken = voice(0.55)
        broken[3000] = float("nan")
        soundfile.write(path, broken, 16000, subtype="FLOAT")
    return ("--data.corpus", "manifest", "--data.manifest", manifest, "--stages", "pretrain",
            "--data.scan", "header", "--pretrain.batches.scan", "header")  # fmt: skip


def test_files_that_fail_while_training_are_listed(arguments, tmp_path, capsys):
    assert run(tmp_path, *arguments, "--pretrain.batches.max_bad_share", 0.4) == 0
    rows = read_rows(tmp_path / "bad_files.jsonl")
    assert len(rows) == 3 and all(row["id"].endswith("-1") for row in rows)
    assert {row["reason"] for row in rows} == {"not finite"}
    assert "3 files failed while it trained" in capsys.readouterr().out


def test_too_many_files_that_fail_while_training_stop_the_run(arguments, tmp_path):
    with pytest.raises(UserError, match="3 of 9 files cannot be used(.|\n)*-1: not finite"):
        run(tmp_path, *arguments, "--pretrain.batches.max_bad_share", 0.3)
    assert not (tmp_path / "pretrain/model").exists()
