"""A hundred files, six of them bad, one twenty minutes long: no command loses another."""

import dataclasses
import json
import resource

import numpy as np
import pytest

from c2ser_jax import evaluate, extract, predict
from c2ser_jax.data.audio import probe_audio
from c2ser_jax.data.manifest import read_manifest
from c2ser_jax.extraction.store import read_rows
from tests.bad_manifest import LABELS, make_bad_manifest
from tests.tiny_models import TINY, write_tiny

SMALL = dataclasses.replace(TINY, heads=1, depth=1, prenet_depth=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("m") / "model", labels=list(LABELS), cfg=SMALL))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    manifest, bad, good = make_bad_manifest(tmp_path_factory.mktemp("corpus"))
    assert len(bad) == 6 and len(good) == 94
    return manifest, bad, good


def test_extract_lists_the_bad_ones_and_loses_no_other(model, corpus, tmp_path):
    manifest, bad, good = corpus
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = tmp_path / "o"
    arguments = ["--checkpoint", model, "--input", str(manifest), "--output", str(output)]
    assert extract.main(arguments) == 1
    errors = {row["id"]: row["reason"] for row in read_rows(output / "errors.jsonl")}
    assert errors == bad
    rows = {row["id"]: row for row in read_rows(output / "index.jsonl")}
    assert list(rows) == good
    paths = {u.id: u.path for u in read_manifest(manifest)}
    for name, row in rows.items():
        info = probe_audio(paths[name])
        frames = TINY.frames(round(info.seconds * 16000))
        values = np.load(output / row["file"], mmap_mode="r", allow_pickle=False)
        assert values.shape == (frames, TINY.width) == (row["frames"], TINY.width)
        assert np.isfinite(values).all()
    assert rows["good-long"]["windows"] > 40
    # The long recording alone is 77 MB of samples.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 600 * 1024, f"{grown / 1024:.0f} MiB more"


def test_predict_has_a_row_for_each(model, corpus, capsys):
    manifest, bad, good = corpus
    assert predict.main(["--checkpoint", model, "--format", "json", str(manifest)]) == 1
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert {n: r["reason"] for n, r in rows.items() if "error" in r} == bad
    assert {n for n, r in rows.items() if "label" in r} == set(good)
    assert rows["good-long"]["seconds"] == 1200.0


def test_evaluate_scores_the_rest(model, corpus, tmp_path):
    manifest, bad, good = corpus
    arguments = ["--checkpoint", model, "--manifest", str(manifest), "--output", str(tmp_path)]
    assert evaluate.main(arguments) == 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {row["id"]: row["reason"] for row in metrics["bad"]} == bad
    scored = [
        json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()
    ]
    assert {row["id"] for row in scored} == set(good) and metrics["num"] == 94
