"""A run goes on in its folder with any settings that change neither data nor parameters."""

import json

import pytest

from c2ser_jax import stages
from c2ser_jax.errors import UserError
from tests.integration.tiny_corpus import read_rows, run, write_corpus


def test_other_workers_logs_and_spellings_of_the_root_go_on_with_the_run(tmp_path, monkeypatch):
    manifest = write_corpus(tmp_path / "corpus", ["angry", "sad"])
    monkeypatch.chdir(tmp_path)
    data = ("--data.corpus", "manifest", "--data.manifest", manifest, "--stages", "pretrain")
    folder = tmp_path / "run"
    assert run(folder, *data, "--data.root", "corpus") == 0
    before = (folder / "pretrain/model/params.safetensors").read_bytes()
    changed = ("--pretrain.batches.workers", 1, "--pretrain.loop.log_every", 2)
    assert run(folder, *data, *changed, "--data.root", tmp_path / "corpus/../corpus") == 0
    assert [row["step"] for row in read_rows(folder / "pretrain/metrics.jsonl")] == [1, 2]
    assert (folder / "pretrain/model/params.safetensors").read_bytes() == before
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert stored["pretrain"]["batches"]["workers"] == 1
    monkeypatch.setattr(stages, "initial_front_end", None)  # a stage with a checkpoint needs none
    assert run(folder, *data, "--data.root", "corpus") == 0
    with pytest.raises(UserError, match="holds another run .*seed: 0 → 1"):
        run(folder, *data, "--seed", 1)
