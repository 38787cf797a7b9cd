"""A hundred rows with one of each bad file: nothing good is lost, the bad ones have reasons."""

import itertools
import re

import numpy as np
import pytest

from c2ser_jax.data.loading import Failed, iterate_audio
from c2ser_jax.data.manifest import read_manifest
from c2ser_jax.data.pipeline import DataConfig, TrainingData
from c2ser_jax.data.sources import FileSource
from c2ser_jax.errors import UserError
from tests.bad_manifest import LABELS, make_bad_manifest


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    return make_bad_manifest(tmp_path_factory.mktemp("bad"))


def test_inference_loads_all_good_rows_and_reports_the_bad(hundred):
    manifest, bad, good = hundred
    rows = read_manifest(manifest)
    assert len(rows) == 100
    failures, samples, windows = {}, {}, {}
    for item in iterate_audio(rows, window_seconds=30.0, overlap_seconds=2.0):
        name = item.utterance.id
        if isinstance(item, Failed):
            failures[name] = item.reason
            assert item.message.startswith(item.utterance.path)
            continue
        assert np.isfinite(item.audio).all() and len(item.audio) <= 30 * 16_000
        new = len(item.audio) - (item.window.overlap_samples if item.window else 0)
        samples[name] = samples.get(name, 0) + new
        windows[name] = windows.get(name, 0) + 1
    assert failures == bad
    assert set(samples) == set(good)
    assert samples["good-long"] == 1200 * 16_000 and windows["good-long"] > 40
    assert samples["good-channels"] == 12_800 and samples["good-192khz"] == 14_400


@pytest.mark.parametrize("scan", ["decode", "header"])
def test_training_uses_all_good_rows_and_lists_the_bad(hundred, scan):
    manifest, bad, good = hundred
    cfg = DataConfig(scan=scan, batch_seconds=20, max_seconds=5.0)
    data = TrainingData(FileSource(read_manifest(manifest)), LABELS, cfg, seed=0)
    batches = data.batches()
    epoch = list(itertools.islice(batches, data.steps_per_epoch))
    batches.close()
    names = [name for batch in epoch for name in batch["id"] if name]
    assert sorted(names) == sorted(good)
    assert {row.id: row.reason for row in data.bad} == bad
    assert all(np.isfinite(batch["audio"]).all() for batch in epoch)
    longest = max(batch["audio_samples"].max() for batch in epoch)
    assert longest == 5 * 16_000  # a crop of the 20 minutes


def test_above_the_allowed_share_the_run_stops_with_the_list(hundred):
    manifest, bad, _ = hundred
    source = FileSource(read_manifest(manifest))
    with pytest.raises(UserError, match="6 of 100 files cannot be used") as caught:
        TrainingData(source, LABELS, DataConfig(max_bad_share=0.05), seed=0)
    listed = dict(re.findall(r"^  (\S+): ([a-z ]+): ", str(caught.value), re.MULTILINE))
    assert listed == bad
