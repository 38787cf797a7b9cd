"""`python -m c2ser_jax.train`: a whole run, going on with it, and refusing another one's folder."""

import json
from pathlib import Path

import numpy as np
import pytest

import c2ser_jax
from c2ser_jax import train
from c2ser_jax.config import load_run
from c2ser_jax.corpus import make_folds, read_corpus
from c2ser_jax.errors import UserError

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart")
TINY = """
    --encoder.width 24 --encoder.depth 1 --encoder.heads 2 --encoder.extra_tokens 3
    --encoder.conv_layers.0.channels 20 --encoder.conv_layers.1.channels 8
    --front_end.steps 2 --front_end.rows 2 --encoder.position_width 9 --encoder.position_depth 3
    --data.synthetic.speakers 4 --data.synthetic.utterances 3 --data.synthetic.unlabelled 2
    --pretrain.task.data2vec.clone_batch 1 --pretrain.task.data2vec.decoder_depth 1
    --pretrain.task.data2vec.decoder_width 8 --pretrain.batches.buckets 1
    --pretrain.batches.batch_seconds 8 --pretrain.loop.steps 3 --pretrain.loop.log_every 1
    --pretrain.optimizer.warmup_steps 1
    --probe.epochs 2 --probe.hidden 4 6 --probe.warmup_epochs 1
""".split()


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train.main(["--config", CONFIG, "--workdir", str(folder), "--no-progress", *TINY]) == 0
    return folder


def test_a_run_leaves_its_config_curves_scores_and_pictures(workdir):
    for name in ("config.json", "pretrain/metrics.jsonl", "pretrain/curves.png",
                 "probe/metrics.json", "probe/confusion.png", "probe/report.md",
                 "probe/predictions.jsonl"):  # fmt: skip
        assert (workdir / name).stat().st_size > 0, name
    scores = json.loads((workdir / "probe/metrics.json").read_text())
    assert 0 <= scores["ua"] <= 1 and scores["constant_floor"]["ua"] == 0.25
    assert len(read_jsonl(workdir / "probe/predictions.jsonl")) == scores["num"] == 12


def test_the_probe_is_scored_on_speakers_it_never_heard(workdir):
    run = load_run(CONFIG, TINY)
    source, _ = read_corpus(run.data)
    (fold,) = make_folds(run.data, source, run.seed)
    heard = {u.speaker for u in [*fold.train, *fold.dev]}
    rows = read_jsonl(workdir / "probe/predictions.jsonl")
    assert {row["speaker"] for row in rows} == {u.speaker for u in fold.test}
    assert not heard & {row["speaker"] for row in rows}
    trained = {row["id"] for row in read_jsonl(workdir / "pretrain/model/trained_on.jsonl")}
    assert trained == {u.id for u in fold.train}


def test_the_trained_model_loads_from_its_directory_alone(workdir):
    model = c2ser_jax.load(workdir / "pretrain" / "model")
    frames = model.features(np.sin(np.arange(16000) / 20.0), "frame", rate=16000)
    assert frames.shape == (model.config.frames(16000), 24) and np.isfinite(frames).all()


def test_the_same_command_goes_on_without_training_again(workdir, capsys):
    before = (workdir / "pretrain/metrics.jsonl").read_text()
    assert train.main(["--config", CONFIG, "--workdir", str(workdir), "--no-progress", *TINY]) == 0
    assert (workdir / "pretrain/metrics.jsonl").read_text() == before
    assert "UA" in capsys.readouterr().out


def test_another_run_does_not_overwrite_the_folder(workdir):
    with pytest.raises(UserError, match="pretrain.loop.steps: 3 → 4"):
        train.main(
            ["--config", CONFIG, "--workdir", str(workdir), *TINY, "--pretrain.loop.steps", "4"]
        )


def test_folds_that_probe_one_model_extract_every_utterance_once(workdir, tmp_path):
    source, _ = read_corpus(load_run(CONFIG, TINY).data)
    speakers = sorted({str(u.speaker) for u in source.utterances})[:2]
    settings = ["--initial", str(workdir / "pretrain/model"), "--stages", "probe",
                "--data.protocol", "loso", "--data.folds", *speakers]  # fmt: skip
    command = ["--config", CONFIG, "--workdir", str(tmp_path), "--no-progress", *TINY, *settings]
    with pytest.raises(UserError, match="model's training data.* --data.allow_leakage True"):
        train.main(command)
    assert not (tmp_path / "features").exists()
    assert train.main([*command, "--data.allow_leakage", "True"]) == 0
    index = read_jsonl(tmp_path / "features/index.jsonl")
    labelled = {u.id for u in source.utterances if u.label}
    assert sorted(row["id"] for row in index) == sorted(labelled)
    scored = read_jsonl(tmp_path / "probe/predictions.jsonl")
    assert {row["speaker"] for row in scored} == set(speakers)
