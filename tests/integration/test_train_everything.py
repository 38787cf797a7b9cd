"""Pretraining alone takes every utterance, asks for no speaker and no label, and scores nothing."""

import json

import pytest

from c2ser_jax.config import load_run
from c2ser_jax.errors import UserError
from tests.integration.tiny_corpus import CONFIG, read_rows, run, write_corpus


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings for recordings of which nothing but the file is known."""
    manifest = write_corpus(tmp_path_factory.mktemp("corpus"), [None, None])
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        del row["speaker"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ("--data.corpus", "manifest", "--data.manifest", str(manifest))


def test_everything_is_trained_on_and_the_model_is_named(data, tmp_path, capsys):
    settings = ("--data.protocol", "all", "--pretrain.task.category_weight", 0)
    assert run(tmp_path, *data, *settings, "--stages", "pretrain") == 0
    trained = read_rows(tmp_path / "pretrain/model/trained_on.jsonl")
    assert len(trained) == 8
    out = capsys.readouterr().out
    assert f"the model is in {tmp_path / 'pretrain/model'}" in out and "UA" not in out


def test_a_stage_that_needs_labels_or_test_data_says_so(data, tmp_path):
    for stages in (["pretrain"], ["classify"]):
        with pytest.raises(UserError, match="a stage of this run needs labels"):
            run(tmp_path, *data, "--data.protocol", "all", "--stages", *stages)
    with pytest.raises(UserError, match="nothing to probe on"):
        load_run(CONFIG, ["--data.protocol", "all"])
    assert not list(tmp_path.iterdir())
