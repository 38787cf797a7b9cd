"""`python -m c2ser_jax.train`: a whole run, going on with it, and refusing another one's folder."""

import json

import numpy as np
import pytest

import c2ser_jax
from c2ser_jax.config import load_run
from c2ser_jax.corpus import make_folds, read_corpus
from c2ser_jax.errors import UserError
from tests.integration.tiny_corpus import CONFIG, read_rows, run, write_corpus


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a run on a manifest of four speakers and four emotions."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = write_corpus(folder, ["angry", "happy", "neutral", "sad"])
    return ("--stages", "pretrain", "probe", "--probe.hidden", "4", "6",
            "--data.corpus", "manifest", "--data.manifest", str(manifest))  # fmt: skip


@pytest.fixture(scope="module")
def workdir(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, *settings) == 0
    return folder


def test_a_run_leaves_its_config_curves_scores_and_pictures(workdir):
    for name in ("config.json", "pretrain/metrics.jsonl", "pretrain/curves.png",
                 "probe/metrics.json", "probe/confusion.png", "probe/report.md",
                 "probe/predictions.jsonl"):  # fmt: skip
        assert (workdir / name).stat().st_size > 0, name
    scores = json.loads((workdir / "probe/metrics.json").read_text())
    assert 0 <= scores["ua"] <= 1 and scores["constant_floor"]["ua"] == 0.25
    assert len(read_rows(workdir / "probe/predictions.jsonl")) == scores["num"] == 4


def test_the_probe_is_scored_on_speakers_it_never_heard(workdir, settings):
    cfg = load_run(CONFIG, [*settings])
    source, _ = read_corpus(cfg.data)
    (fold,) = make_folds(cfg.data, source, cfg.seed)
    heard = {u.speaker for u in [*fold.train, *fold.dev]}
    rows = read_rows(workdir / "probe/predictions.jsonl")
    assert {row["speaker"] for row in rows} == {u.speaker for u in fold.test}
    assert not heard & {row["speaker"] for row in rows}
    trained = {row["id"] for row in read_rows(workdir / "pretrain/model/trained_on.jsonl")}
    assert trained == {u.id for u in fold.train}


def test_the_trained_model_loads_from_its_directory_alone(workdir):
    model = c2ser_jax.load(workdir / "pretrain" / "model")
    frames = model.features(np.sin(np.arange(16000) / 20.0), "frame", rate=16000)
    assert frames.shape == (model.config.frames(16000), 12) and np.isfinite(frames).all()


def test_the_same_command_goes_on_without_training_again(workdir, settings, capsys):
    before = (workdir / "pretrain/metrics.jsonl").read_text()
    assert run(workdir, *settings) == 0
    assert (workdir / "pretrain/metrics.jsonl").read_text() == before
    assert "UA" in capsys.readouterr().out


def test_another_run_does_not_overwrite_the_folder(workdir, settings):
    with pytest.raises(UserError, match="pretrain.loop.steps: 2 → 4"):
        run(workdir, *settings, "--pretrain.loop.steps", "4")


def test_folds_that_probe_one_model_extract_every_utterance_once(workdir, settings, tmp_path):
    source, _ = read_corpus(load_run(CONFIG, [*settings]).data)
    speakers = sorted({str(u.speaker) for u in source.utterances})[:2]
    probe = (*settings, "--stages", "probe", "--initial", str(workdir / "pretrain/model"),
             "--data.protocol", "loso", "--data.folds", *speakers)  # fmt: skip
    with pytest.raises(UserError, match="model's training data.* --data.allow_leakage True"):
        run(tmp_path, *probe)
    assert not (tmp_path / "features").exists()
    assert run(tmp_path, *probe, "--data.allow_leakage", "True") == 0
    index = read_rows(tmp_path / "features/index.jsonl")
    labelled = {u.id for u in source.utterances if u.label}
    assert sorted(row["id"] for row in index) == sorted(labelled)
    scored = read_rows(tmp_path / "probe/predictions.jsonl")
    assert {row["speaker"] for row in scored} == set(speakers)
