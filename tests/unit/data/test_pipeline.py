"""Batches are a pure function of seed and step: for any worker count, process count and restart."""

import dataclasses
import itertools

import numpy as np
import pytest
import soundfile

from c2ser_jax.data.augmentation import AugmentConfig
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.pipeline import DataConfig, TrainingData
from c2ser_jax.data.sources import FileSource, MemorySource
from c2ser_jax.errors import UserError

CLASSES = ["angry", "happy", "sad"]
ALL_ON = AugmentConfig(gain_db=6, noise_probability=0.5, speed_probability=0.5, mix_probability=0.5)


def source(count=23, unlabelled=0, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        label = CLASSES[i % 3] if i >= unlabelled else None
        row = Utterance(f"u{i:02d}", f"memory:{i}", label=label, speaker=f"s{i % 4}")
        samples = int(rng.integers(1000, 16_000))
        items.append((row, rng.uniform(-0.5, 0.5, samples).astype(np.float32)))
    return MemorySource(items)


def data(cfg=None, seed=0, rows=None, **processes):
    cfg = cfg or DataConfig(buckets=3, batch_seconds=4, row_multiple=2)
    return TrainingData(rows or source(), CLASSES, cfg, seed=seed, **processes)


def take(batches, count):
    got = list(itertools.islice(batches, count))
    batches.close()
    return got


def assert_equal(one, other):
    assert set(one) == set(other) and one["id"] == other["id"]
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_has_the_contracts_shapes_and_types():
    made = data()
    for batch in take(made.batches(), made.steps_per_epoch):
        rows, samples = batch["audio"].shape
        assert (rows, samples) in made.plan.shapes() and rows % 2 == 0
        assert batch["audio"].dtype == np.float32
        for name in ("audio_samples", "label", "speaker"):
            assert batch[name].dtype == np.int32 and batch[name].shape == (rows,)
        for i, name in enumerate(batch["id"]):
            assert not batch["audio"][i, batch["audio_samples"][i] :].any()
            if not name:
                assert (batch["audio_samples"][i], batch["label"][i]) == (0, -1)
                continue
            number = int(name[1:])
            original, row = source().load(number)
            np.testing.assert_array_equal(batch["audio"][i, : len(original)], original)
            assert batch["label"][i] == number % 3
            assert made.speakers[batch["speaker"][i]] == row.speaker


def test_an_epoch_holds_every_row_once_and_the_next_is_in_another_order():
    made = data()
    batches = take(made.batches(), 2 * made.steps_per_epoch)
    names = [[n for n in b["id"] if n] for b in batches]
    first = list(itertools.chain(*names[: made.steps_per_epoch]))
    second = list(itertools.chain(*names[made.steps_per_epoch :]))
    assert sorted(first) == sorted(second) == [f"u{i:02d}" for i in range(23)]
    assert first != second


def test_starting_in_the_middle_continues_the_same_run():
    cfg = DataConfig(buckets=3, batch_seconds=4, max_seconds=0.4, augment=ALL_ON)
    whole = take(data(cfg).batches(), 9)
    for one, other in zip(whole[5:], take(data(cfg).batches(5), 4), strict=True):
        assert_equal(one, other)
    changed = take(data(cfg, seed=1).batches(5), 4)
    assert any(a["id"] != b["id"] for a, b in zip(whole[5:], changed, strict=True))


def test_worker_processes_make_the_same_batches():
    cfg = DataConfig(buckets=3, batch_seconds=4, max_seconds=0.4, augment=ALL_ON)
    with_workers = dataclasses.replace(cfg, workers=2)
    for one, other in zip(
        take(data(cfg).batches(3), 5), take(data(with_workers).batches(3), 5), strict=True
    ):
        assert_equal(one, other)


def test_processes_share_the_rows_of_one_global_batch():
    cfg = DataConfig(buckets=2, batch_seconds=4, row_multiple=4, max_seconds=0.4, augment=ALL_ON)
    whole = take(data(cfg).batches(1), 4)
    shares = [take(data(cfg, process_index=p, process_count=2).batches(1), 4) for p in (0, 1)]
    for step, batch in enumerate(whole):
        joined = {
            name: np.concatenate([share[step][name] for share in shares])
            for name in ("audio", "audio_samples", "label", "speaker")
        }
        assert_equal(batch, joined | {"id": shares[0][step]["id"] + shares[1][step]["id"]})
    with pytest.raises(UserError, match="multiple of the number of processes"):
        data(dataclasses.replace(cfg, row_multiple=3), process_count=2)


def test_long_utterances_give_random_crops_that_lie_inside(tmp_path):
    ramp = np.arange(16_000, dtype=np.float32) / 32768
    row = Utterance("long", str(tmp_path / "a.flac"))
    soundfile.write(row.path, ramp, 16000, subtype="PCM_16")
    cfg = DataConfig(max_seconds=0.1, batch_seconds=0.1)
    starts = {}
    for name, rows in (("file", FileSource([row])), ("memory", MemorySource([(row, ramp)]))):
        made = TrainingData(rows, None, cfg, seed=0)
        crops = [batch["audio"][0] for batch in take(made.batches(), 12)]
        starts[name] = [round(float(crop[0]) * 32768) for crop in crops]
        for start, crop in zip(starts[name], crops, strict=True):
            np.testing.assert_array_equal(crop, ramp[start : start + 1600])
        (whole,) = take(made.evaluation_batches(), 9)
        np.testing.assert_array_equal(whole["audio"][0], ramp[:1600])
    assert starts["file"] == starts["memory"] and len(set(starts["file"])) > 8


def test_evaluation_holds_every_row_once_and_repeats_itself():
    cfg = DataConfig(buckets=3, batch_seconds=4, augment=ALL_ON)
    first, second = (list(data(cfg, seed=s).evaluation_batches()) for s in (0, 1))
    names = [name for batch in first for name in batch["id"] if name]
    assert sorted(names) == [f"u{i:02d}" for i in range(23)]
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)


def test_augmentation_changes_with_the_step_and_not_with_the_labels():
    cfg = DataConfig(buckets=1, batch_seconds=30, augment=AugmentConfig(gain_db=6))
    one, two = take(data(cfg).batches(), 2)
    gains = [
        {n: float(np.abs(b["audio"][i]).max()) for i, n in enumerate(b["id"]) if n}
        for b in (one, two)
    ]
    assert all(gains[0][name] != gains[1][name] for name in gains[0].keys() & gains[1].keys())


def test_label_share_mixes_labelled_and_unlabelled_rows():
    rows = source(64, unlabelled=48)
    cfg = DataConfig(buckets=1, batch_seconds=20, max_seconds=1.0, label_share=0.5, max_rows=8)
    batches = take(TrainingData(rows, CLASSES, cfg, seed=0).batches(), 8)
    for batch in batches:
        assert abs((batch["label"] >= 0).sum() - 4) <= 1
    plain = TrainingData(rows, CLASSES, dataclasses.replace(cfg, label_share=None), seed=0)
    assert np.mean([(b["label"] >= 0).mean() for b in take(plain.batches(), 8)]) < 0.4


def test_balanced_sampling_gives_every_class_its_rows():
    rows = MemorySource(
        [
            (Utterance(f"u{i}", "m", label="sad" if i < 4 else "angry"), np.ones(1600, np.float32))
            for i in range(40)
        ]
    )
    cfg = DataConfig(batch_seconds=1, sampling="balanced", allow_silent=True)
    for batch in take(TrainingData(rows, CLASSES, cfg, seed=0).batches(), 4):
        assert [(batch["label"] == c).sum() for c in range(3)] == [5, 0, 5]


def test_the_cache_and_the_files_give_the_same_batches(tmp_path):
    memory = source(9)
    rows = []
    for i in range(9):
        audio, row = memory.load(i)
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, audio, 16000, subtype="FLOAT")
        rows.append(dataclasses.replace(row, path=str(path)))
    made = [
        TrainingData(FileSource(rows), CLASSES, DataConfig(batch_seconds=3, cache=cache), seed=0)
        for cache in (False, True)
    ]
    for one, other in zip(*(take(m.batches(), 4) for m in made), strict=True):
        assert_equal(one, other)
    assert made[0].fingerprint == made[1].fingerprint


def test_the_fingerprint_tells_other_audio_and_other_labels_but_not_another_order():
    rows = [source(6).load(i) for i in range(6)]
    items = [(row, audio) for audio, row in rows]

    def fingerprint(items):
        return data(rows=MemorySource(items)).fingerprint

    same = fingerprint(items)
    assert fingerprint(items[::-1]) == same
    louder = [(items[0][0], items[0][1] * 0.5), *items[1:]]
    assert fingerprint(louder) != same
    relabelled = [(dataclasses.replace(items[0][0], label="sad"), items[0][1]), *items[1:]]
    assert fingerprint(relabelled) != same
    hashes = {row["audio_sha256"] for row in data(rows=MemorySource(items)).trained_on()}
    assert len(hashes) == 6 and None not in hashes


def test_a_file_that_breaks_after_a_header_scan_leaves_an_empty_row(tmp_path):
    rows = []
    for i in range(4):
        path = tmp_path / f"{i}.wav"
        sound = np.full(4000, 0.1) + 0.01 * np.arange(4000) % 0.1
        sound[2000] = np.nan if i == 2 else 0
        sound *= i != 1
        soundfile.write(path, sound, 16000, subtype="FLOAT")
        rows.append(Utterance(f"u{i}", str(path), label="sad"))
    for workers in (0, 1):
        cfg = DataConfig(scan="header", batch_seconds=2, workers=workers, max_bad_share=0.5)
        made = TrainingData(FileSource(rows), CLASSES, cfg, seed=0)
        assert not made.bad
        (batch,) = take(made.batches(), 1)
        assert sorted(batch["id"]) == ["", "", "u0", "u3"]
        empty = batch["id"].index("")
        assert (batch["audio_samples"][empty], batch["label"][empty]) == (0, -1)
        found = {bad.id: bad.reason for bad in made.bad}
        assert found == {"u1": "silent", "u2": "not finite"}
    strict = TrainingData(
        FileSource(rows), CLASSES, dataclasses.replace(cfg, workers=0, max_bad_share=0.4), seed=0
    )
    with pytest.raises(UserError, match="2 of 4 files .*max_bad_share 0.4(.|\n)*u2: not finite"):
        take(strict.batches(), 1)


def test_labels_outside_of_the_classes_are_refused_or_unlabelled():
    odd = MemorySource([(Utterance("a", "m", label="sadd"), np.ones(800, np.float32))])
    cfg = DataConfig(allow_silent=True)
    with pytest.raises(UserError, match="'sadd' is not one of the classes.*'sad'"):
        TrainingData(odd, CLASSES, cfg, seed=0)
    loose = dataclasses.replace(cfg, unknown_labels="unlabelled")
    assert TrainingData(odd, CLASSES, loose, seed=0).label.tolist() == [-1]
    assert TrainingData(odd, None, cfg, seed=0).label.tolist() == [-1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_seconds": 0},
        {"max_bad_share": 1.5},
        {"label_share": -0.1},
        {"bucket_seconds": (3.0, 1.0)},
        {"bucket_seconds": ()},
        {"workers": -1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=rf"batches\.{next(iter(wrong))}"):
        DataConfig(**wrong)


def test_given_bucket_lengths_are_used():
    cfg = DataConfig(bucket_seconds=(0.5, 1.0), batch_seconds=4)
    assert {n for _, n in data(cfg).plan.shapes()} == {8000, 16000}
