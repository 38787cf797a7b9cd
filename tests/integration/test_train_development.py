"""Development data: their losses are logged where a stage asks for them, else they train."""

import numpy as np
import pytest

import c2ser_jax
from c2ser_jax.config import load_run
from c2ser_jax.errors import UserError
from tests.integration.tiny_corpus import CONFIG, read_rows, run, write_corpus

STAGES = ("--stages", "pretrain", "classify")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Settings for a manifest of four speakers."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write_corpus(folder, ["angry", "happy", "sad"])
    return folder, ("--data.corpus", "manifest", "--data.manifest", str(manifest))


def trained(workdir, stage):
    return {row["id"] for row in read_rows(workdir / stage / "model/trained_on.jsonl")}


def test_stages_log_the_losses_of_the_model_they_leave(data, tmp_path):
    folder, settings = data
    every = [f"--{stage}.loop.evaluate_every" for stage in ("pretrain", "classify")]
    average = ("--classify.loop.ema_decay", 0.5)  # the stage leaves its averaged parameters
    assert run(tmp_path, *settings, *STAGES, every[0], 1, every[1], 2, *average) == 0
    pretraining, rows = (
        [r for r in read_rows(tmp_path / stage / "metrics.jsonl") if r["kind"] == "evaluate"]
        for stage in ("pretrain", "classify")
    )
    assert [row["step"] for row in pretraining] == [1, 2] and [row["step"] for row in rows] == [2]
    assert {"loss", "frame", "utterance"} < set(pretraining[0])
    parts = (pretraining[0][k] * w for k, w in (("frame", 1.0), ("utterance", 0.1)))
    category = pretraining[0].get("category", 0.0)
    assert pretraining[0]["loss"] == pytest.approx(sum(parts) + category, rel=1e-5)

    tested = {row["id"] for row in read_rows(tmp_path / "classify/predictions.jsonl")}
    names = {path.stem for path in (folder / "audio").iterdir()}
    held = sorted(names - tested - trained(tmp_path, "classify"))
    assert len(held) == 3 and len({name[:2] for name in held}) == 1
    model = c2ser_jax.load(tmp_path / "classify/model")
    found = model([str(folder / "audio" / f"{name}.wav") for name in held])
    labels = [("angry", "happy", "sad")[int(name[-1])] for name in held]
    loss = -np.mean(
        [np.log(p.probabilities[label]) for p, label in zip(found, labels, strict=True)]
    )
    assert rows[0]["classification"] == pytest.approx(loss, rel=1e-4)
    hits = np.mean([p.label == label for p, label in zip(found, labels, strict=True)])
    assert rows[0]["accuracy"] == pytest.approx(hits)


def test_data_that_no_stage_looks_at_are_trained_on(data, tmp_path, capsys):
    _, settings = data
    assert run(tmp_path, *settings, "--stages", "pretrain") == 0
    assert len(trained(tmp_path, "pretrain")) == 9
    assert load_run(CONFIG).uses_development  # the probe does
    assert "classes of the corpus: angry, happy, sad\n" in capsys.readouterr().out


def test_losses_on_data_that_are_not_kept_are_refused():
    for setting in (["--data.development", "False"], ["--data.protocol", "all"]):
        with pytest.raises(UserError, match="asks for losses on development data"):
            load_run(CONFIG, ["--classify.loop.evaluate_every", "5", *STAGES, *setting])
