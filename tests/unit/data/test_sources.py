"""Sources give audio by place; scans find every bad row and stop above the allowed share."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from c2ser_jax.data.audio import BadAudio
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.scanning import BadFile, listing, scan_source
from c2ser_jax.data.sources import FileSource, MemorySource, tfds_source
from c2ser_jax.errors import UserError


@pytest.fixture
def files(tmp_path):
    rows = []
    for i in range(5):
        sound = np.random.default_rng(i).uniform(-0.5, 0.5, 4000 + i)
        soundfile.write(tmp_path / f"{i}.flac", sound, 16000)
        rows.append(Utterance(f"u{i}", str(tmp_path / f"{i}.flac"), label="sad"))
    return rows


def test_files_and_memory_hold_the_same(files):
    disk = FileSource(files)
    memory = MemorySource([(row, disk.load(i)[0]) for i, row in enumerate(files)])
    for i in range(5):
        np.testing.assert_array_equal(disk.load(i)[0], memory.load(i)[0])
        piece = disk.load_piece(i, 1001, 500)
        np.testing.assert_array_equal(piece, memory.load_piece(i, 1001, 500))
        np.testing.assert_array_equal(piece, disk.load(i)[0][1001:1501])
        assert disk.scan(i, allow_silent=False) == memory.scan(i, allow_silent=False)


def test_a_piece_of_a_cut_row_stays_inside_it(files):
    row = Utterance("cut", files[0].path, start=0.05, end=0.15)
    source = FileSource([row])
    whole = source.load(0)[0]
    assert len(whole) == 1600
    np.testing.assert_array_equal(source.load_piece(0, 1000, 5000), whole[1000:])


def test_repeated_ids_are_refused(files):
    with pytest.raises(UserError, match="'u0' occurs twice"):
        FileSource([files[0], files[0]])


def test_arrays_that_are_too_short_are_bad():
    source = MemorySource([(Utterance("a", "memory"), np.ones(399))])
    with pytest.raises(BadAudio) as caught:
        source.load(0)
    assert caught.value.reason == "too short"


@pytest.mark.parametrize("cache", [False, True])
def test_a_scan_keeps_the_good_and_lists_the_bad(files, tmp_path, cache):
    (tmp_path / "2.flac").write_bytes(b"")
    soundfile.write(tmp_path / "4.flac", np.zeros(5000), 16000)
    found = scan_source(FileSource(files), cache=cache)
    assert [(bad.id, bad.reason) for bad in found.bad] == [("u2", "empty"), ("u4", "silent")]
    assert [found.source.utterances[i].id for i in found.usable] == ["u0", "u1", "u3"]
    assert [scan.samples for scan in found.scans] == [4000, 4001, 4003]
    kept = scan_source(FileSource(files), cache=cache, allow_silent=True)
    assert [bad.id for bad in kept.bad] == ["u2"]


def test_a_header_scan_trusts_the_header(files, tmp_path):
    (tmp_path / "1.flac").unlink()
    cut = Utterance("cut", files[0].path, start=0.1, end=0.11)
    found = scan_source(FileSource([*files, cut]), decode=False)
    assert [(bad.id, bad.reason) for bad in found.bad] == [("u1", "missing"), ("cut", "too short")]
    assert [scan.samples for scan in found.scans] == [4000, 4002, 4003, 4004]


def test_a_header_scan_of_audio_in_memory_needs_no_files(files):
    items = [(Utterance(f"m{i}", "nowhere"), np.ones(390 + 10 * i)) for i in range(3)]
    found = scan_source(MemorySource(items), decode=False)
    assert [(bad.id, bad.reason) for bad in found.bad] == [("m0", "too short")]
    assert found.usable == [1, 2] and [scan.samples for scan in found.scans] == [400, 410]


def test_too_many_bad_files_stop_with_the_list(files, tmp_path):
    (tmp_path / "2.flac").write_bytes(b"")
    assert len(scan_source(FileSource(files), max_bad_share=0.2).bad) == 1
    with pytest.raises(UserError, match=r"1 of 5 files.*max_bad_share(.|\n)*u2: empty: .*2.flac"):
        scan_source(FileSource(files), max_bad_share=0.19)
    with pytest.raises(UserError, match="1 of 1 files"):
        scan_source(FileSource(files[2:3]), max_bad_share=1.0)
    with pytest.raises(UserError, match="data are empty"):
        scan_source(FileSource([]))


def test_a_long_list_of_bad_files_is_cut():
    text = listing([BadFile(f"u{i}", "p", "empty", "d") for i in range(60)])
    assert len(text.splitlines()) == 51 and text.endswith("and 10 more")


def test_tfds_without_its_extra_says_what_to_install(monkeypatch):
    with pytest.raises(UserError, match="only crema_d and savee"):
        tfds_source("mnist")
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # an import of it fails
    with pytest.raises(UserError, match=r"c2ser_jax\[tfds\]"):
        tfds_source("crema_d")


def test_tfds_rows_become_utterances(monkeypatch):
    """A stand-in for the builder: TensorFlow is not a dependency of the tests."""
    clips = [np.arange(-400, 400) * 30, np.arange(900) * 20]
    rows = [{"audio": c, "label": i, "speaker_id": b"%d" % i} for i, c in enumerate(clips)]
    features = {
        "label": SimpleNamespace(names=["NEU", "ANG"]),
        "audio": SimpleNamespace(sample_rate=16000),
    }
    hidden = []
    builder = SimpleNamespace(
        info=SimpleNamespace(features=features),
        download_and_prepare=lambda: None,
        as_dataset=lambda split: rows,
    )
    tensorflow = SimpleNamespace(
        config=SimpleNamespace(set_visible_devices=lambda *which: hidden.append(which))
    )
    datasets = SimpleNamespace(builder=lambda name, data_dir: builder, as_numpy=lambda x: x)
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", datasets)
    source = tfds_source("crema_d", split="test")
    assert hidden == [([], "GPU")]
    assert [(u.label, u.speaker, u.corpus) for u in source.utterances] == [
        ("NEU", "0", "crema_d"),
        ("ANG", "1", "crema_d"),
    ]
    np.testing.assert_array_equal(source.load(1)[0], (clips[1] / 32768).astype(np.float32))


def test_the_data_package_imports_neither_jax_nor_tensorflow():
    """Its workers are processes: they must start fast and never touch a device."""
    import subprocess

    modules = [
        "audio augmentation batching labels layouts loading manifest opening pipeline prefetch",
        "files scanning source_filter sources splits spoken_scenes synthetic corpora.emobox",
    ]
    names = [f"c2ser_jax.data.{name}" for name in " ".join(modules).split()]
    assert all(importlib.util.find_spec(name) for name in names)
    heavy = "{'jax', 'tensorflow', 'torch'}"
    code = f"import sys, {', '.join(names)}; print(*({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""
