"""The folder of features: safe names, whole files, resume that trusts nothing."""

import errno
import json

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.extraction.store import Advice, FeatureStore, FrameFile, file_stem, read_rows

SETTINGS = {"granularity": "frame", "layer": None}


def filled(folder, **more):
    store = FeatureStore(folder, SETTINGS, resume=False)
    for name, rows in (("a", 3), ("b", 5), ("c", 2)):
        store.add(name, np.full((rows, 4), rows, np.float32), {"path": f"{name}.wav", **more})
    store.close(["a", "b", "c"])
    return folder


def test_distinct_ids_get_distinct_safe_names():
    ids = ["a/b", "a%2Fb", "a\\b", "..", ".", "../x", "a:b", "ü ß", "生气", "a\nb", "A.b-c_d", "%"]
    stems = [file_stem(name) for name in ids]
    assert len(set(stems)) == len(ids)
    assert not any(set(stem) & set("/\\:\n") or stem.startswith(".") for stem in stems)
    assert file_stem("03a01Fa") == "03a01Fa" and file_stem("A.b-c_d") == "A.b-c_d"
    assert file_stem("生气") == "生气"
    for name in ("", "x" * 300):
        with pytest.raises(UserError, match="id"):
            file_stem(name)


def test_files_are_numpy_arrays_in_an_index_of_the_inputs_order(tmp_path):
    store = FeatureStore(tmp_path / "o", SETTINGS, resume=False)
    store.add("x/1", np.arange(6, dtype=np.float32).reshape(3, 2), {"path": "p"})
    store.add("y", np.ones(2, np.float32), {"path": "q"})
    store.fail("z", "r", "missing", "there is no such file")
    store.close(["y", "z", "x/1"])
    rows = read_rows(tmp_path / "o" / "index.jsonl")
    assert [row["id"] for row in rows] == ["y", "x/1"]
    assert rows[1]["shape"] == [3, 2] and rows[1]["path"] == "p"
    values = np.load(tmp_path / "o" / rows[1]["file"], allow_pickle=False)
    np.testing.assert_array_equal(values, np.arange(6).reshape(3, 2))
    assert values.dtype == np.float32
    [error] = read_rows(tmp_path / "o" / "errors.jsonl")
    assert error["reason"] == "missing"


def test_frames_written_in_pieces_appear_only_when_complete(tmp_path):
    store = FeatureStore(tmp_path, SETTINGS, resume=False)
    frames = store.open_frames("long", (5, 3))
    store.write(frames, 2, np.full((3, 3), 2, np.float32))
    assert not (tmp_path / "long.npy").exists()
    store.write(frames, 0, np.full((2, 3), 1, np.float32))
    store.commit(frames, {"path": "p"})
    assert np.load(tmp_path / "long.npy")[:, 0].tolist() == [1, 1, 2, 2, 2]
    gone = store.open_frames("gone", (5, 3))
    gone.discard()
    assert not list(tmp_path.glob(".*"))
    store.close()


def test_resume_trusts_only_whole_files_of_the_right_shape(tmp_path):
    folder = filled(tmp_path / "o")
    (folder / "a.npy").write_bytes((folder / "a.npy").read_bytes()[:-4])
    np.save(folder / "b.npy", np.zeros((5, 9), np.float32))
    (folder / ".d.npy.part").write_bytes(b"half")
    with open(folder / "index.jsonl", "a") as file:
        file.write('{"id": "e", "sha')
    store = FeatureStore(folder, SETTINGS, resume=True)
    finished = [n for n in "abcde" if store.finished(n, f"{n}.wav")]
    assert finished == ["c"] and len(store) == 1
    assert not store.finished("c", "another.wav")
    assert not (folder / ".d.npy.part").exists()
    store.close()
    assert [row["id"] for row in read_rows(folder / "index.jsonl")] == ["c"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = filled(tmp_path / "o")
    with pytest.raises(UserError, match="name another folder, or, .*start the same command again"):
        FeatureStore(folder, SETTINGS, resume=False)
    with pytest.raises(UserError, match="granularity = 'frame', now it is 'tokens'"):
        FeatureStore(folder, {**SETTINGS, "granularity": "tokens"}, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("my life's work")
    with pytest.raises(UserError, match="no folder of features"):
        FeatureStore(other, SETTINGS, resume=True)
    with pytest.raises(UserError, match="is a file"):
        FeatureStore(other / "thesis.txt", SETTINGS, resume=False)
    assert json.loads((folder / "extract.json").read_text()) == SETTINGS


def test_a_command_says_in_its_own_words_what_to_do(tmp_path):
    folder = filled(tmp_path / "o")
    advice = Advice("give another --place", "add --more")
    for settings, resume, words in (
        (SETTINGS, False, "--place, or, to continue .*, add --more"),
        ({**SETTINGS, "layer": 3}, True, "--place"),
    ):
        with pytest.raises(UserError, match=words):
            FeatureStore(folder, settings, resume=resume, advice=advice)
        with pytest.raises(UserError) as plain:
            FeatureStore(folder, settings, resume=resume)
        assert "--" not in str(plain.value)


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(self, offset, values):
        self._file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with FeatureStore(tmp_path / "o", SETTINGS, resume=False) as store:
        store.add("a", np.ones((2, 2), np.float32), {"path": "a.wav"})
        monkeypatch.setattr(FrameFile, "write", full)
        with pytest.raises(
            UserError, match="No space left on device.*start the same command again"
        ):
            store.add("b", np.ones((2, 2), np.float32), {"path": "b.wav"})
    monkeypatch.undo()
    assert sorted(path.suffix for path in (tmp_path / "o").iterdir()) == [
        ".json", ".jsonl", ".jsonl", ".npy",
    ]  # fmt: skip
    with FeatureStore(tmp_path / "o", SETTINGS, resume=True) as store:
        assert store.finished("a", "a.wav") and not store.finished("b", "b.wav")
