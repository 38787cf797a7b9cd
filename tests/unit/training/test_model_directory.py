"""Model directories: whole or not at all, equal to what was written, and never trusted."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    flatten,
    leaves_of,
    nest,
    read_carried,
    read_description,
    read_params,
    read_trained_on,
    write_model,
)
from c2ser_jax.training.safetensors import read_safetensors, write_safetensors

DESCRIPTION = ModelDescription(
    kind="emotion2vec_classifier",
    model={"width": 12, "conv_layers": [[4, 3, 2]]},
    labels=["angry", "fröhlich"],
    extra={"decoder": {"width": 3}},
    origin={"file": "model.pt"},
    licence="CC-BY-4.0",
)


def parameters():
    rng = np.random.default_rng(0)
    return {
        "encoder": {
            "kernel": rng.normal(size=(3, 5)).astype(np.float32),
            "half": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
            "scalar": np.array(3, np.int64),
            "empty": np.zeros((0, 4), np.float32),
        },
        "proj": {"bias": rng.normal(size=(1,)).astype(np.float16), "flag": np.array([True])},
    }


def test_a_model_is_read_back_as_it_was_written(tmp_path):
    place = tmp_path / "deep" / "model"
    carried = {"_ema.x": np.arange(3.0)}
    trained_on = [{"id": "a", "audio_sha256": "00"}, {"id": "ü", "audio_sha256": "11"}]
    write_model(
        place,
        DESCRIPTION,
        leaves_of(parameters()),
        carried=leaves_of(carried),
        trained_on=trained_on,
    )
    assert read_description(place) == DESCRIPTION
    read, wanted = flatten(read_params(place)), flatten(parameters())
    assert read.keys() == wanted.keys()
    for path, array in wanted.items():
        assert read[path].dtype == array.dtype and read[path].shape == array.shape
        np.testing.assert_array_equal(read[path], array)
        assert read[path].flags.aligned and not read[path].flags.writeable
    np.testing.assert_array_equal(read_carried(place)["_ema.x"], carried["_ema.x"])
    assert read_trained_on(place) == trained_on
    assert [p.name for p in place.parent.iterdir()] == ["model"]


def test_the_reference_library_reads_our_file_and_we_read_its(tmp_path):
    flat = {k: v for k, v in flatten(parameters()).items() if k != "encoder/half"}
    write_safetensors(tmp_path / "ours", leaves_of(flat))
    save_file(flat, tmp_path / "theirs")
    for read in (load_file(tmp_path / "ours"), read_safetensors(tmp_path / "theirs")):
        assert read.keys() == flat.keys()
        for path, array in flat.items():
            np.testing.assert_array_equal(read[path], array)


def test_leaves_are_made_one_at_a_time(tmp_path):
    alive, most = set(), [0]

    class Watched(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def maker():
        array = np.ones((100,), np.float32).view(Watched)
        alive.add(id(array))
        most[0] = max(most[0], len(alive))
        return array

    write_safetensors(
        tmp_path / "file", [(f"leaf{i}", (100,), np.float32, maker) for i in range(5)]
    )
    assert most[0] == 1


def test_a_failing_write_leaves_nothing_behind(tmp_path):
    def fail():
        raise RuntimeError("source is broken")

    leaves = [*leaves_of(parameters()), ("last", (1,), np.int8, fail)]
    with pytest.raises(RuntimeError, match="source is broken"):
        write_model(tmp_path / "new" / "model", DESCRIPTION, leaves)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_announcement_is_refused(tmp_path):
    wrong = [("a", (2, 3), np.float32, lambda: np.zeros((3, 2), np.float32))]
    with pytest.raises(ValueError, match="announced"):
        write_model(tmp_path / "model", DESCRIPTION, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place_is_kept_unless_a_model_is_replaced(tmp_path):
    place = tmp_path / "model"
    write_model(place, DESCRIPTION, leaves_of(parameters()))
    with pytest.raises(UserError, match="already holds a model"):
        write_model(place, DESCRIPTION, leaves_of({"a": np.zeros(2)}))
    assert "encoder" in read_params(place)
    write_model(place, DESCRIPTION, leaves_of({"a": np.zeros(2)}), replace=True)
    assert list(read_params(place)) == ["a"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(UserError, match="no model directory"):
        write_model(tmp_path / "thesis", DESCRIPTION, [], replace=True)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "thesis"]


def header(table) -> bytes:
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "header longer than file": (100).to_bytes(8, "little") + b"{}",
    "no json": (4).to_bytes(8, "little") + b"{a:1",
    "not utf8": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "nested too deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a list": header([1]),
    "no entry": header({"a": 3}),
    "no offsets": header({"a": {"dtype": "F32", "shape": [2]}}) + bytes(8),
    "negative offset": header({"a": {**F32, "data_offsets": [-8, 0]}}) + bytes(8),
    "true as offset": header({"a": {**F32, "data_offsets": [False, 8]}}) + bytes(8),
    "cut off": header({"a": F32}) + bytes(7),
    "too long": header({"a": F32}) + bytes(9),
    "shape does not fit": header({"a": {**F32, "shape": [3]}}) + bytes(8),
    "negative shape": header({"a": {**F32, "shape": [-2]}}) + bytes(8),
    "overflowing shape": header({"a": {**F32, "shape": [2**40, 2**40]}}) + bytes(8),
    "many dimensions": header({"a": {**F32, "shape": [1] * 100 + [2]}}) + bytes(8),
    "unknown dtype": header({"a": {**F32, "dtype": "O"}}) + bytes(8),
    "overlap": header({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}) + bytes(12),
    "hole": header({"a": {**F32, "data_offsets": [8, 16]}}) + bytes(16),
    "backwards": header({"a": {**F32, "data_offsets": [8, 0]}}) + bytes(8),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_gets_a_sentence(tmp_path, content):
    (tmp_path / "params.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="params.safetensors"):
        read_params(tmp_path)


def test_random_mutations_of_a_file_never_crash(tmp_path):
    path = tmp_path / "file"
    write_safetensors(path, leaves_of(parameters()))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        mutated = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated[: rng.integers(1, len(whole) + 1)])
        try:
            read_safetensors(path)
        except UserError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "does not describe"),
        ({"format_version": 2}, "update the library"),
        ({"kind": 3}, "'kind'"),
        ({"model": []}, "'model'"),
        ({"labels": [1, 2]}, "'labels'"),
        ({"licence": {}}, "'licence'"),
    ],
)
def test_a_wrong_config_gets_a_sentence(tmp_path, change, words):
    write_model(tmp_path / "m", DESCRIPTION, [])
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(UserError, match=words):
        read_description(tmp_path / "m")
    write_model(tmp_path / "m" / "classify" / "model", DESCRIPTION, [])
    if "format" in change:  # a run's own folder
        with pytest.raises(UserError, match="give a model in it: .*/m/classify/model$"):
            read_description(tmp_path / "m")
    config.write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        read_description(tmp_path / "m")
    config.unlink()
    with pytest.raises(UserError, match="no model directory"):
        read_description(tmp_path / "m")


def test_what_a_killed_writer_left_is_removed_or_put_back(tmp_path):
    place = tmp_path / "model"
    write_model(place, DESCRIPTION, leaves_of(parameters()))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place.rename(tmp_path / f".model.replaced-{gone.pid}")  # killed between the two renames
    assert read_description(place) == DESCRIPTION
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    place.rename(tmp_path / f".model.replaced-{os.getpid()}")
    for number in (gone.pid, os.getpid(), os.getppid()):
        (tmp_path / f".model.writing-{number}").mkdir()
    with pytest.raises(UserError, match="already holds a model"):
        write_model(place, DESCRIPTION, [])
    write_model(place, DESCRIPTION, [], replace=True)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f".model.writing-{os.getppid()}", "model"]  # that one still runs


def test_every_file_is_on_the_disk_before_the_model_is_there(tmp_path, monkeypatch):
    synced = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.add(os.fstat(file).st_ino), fsync(file)))
    write_model(tmp_path / "m", DESCRIPTION, [], trained_on=[{"id": "a"}])
    parts = [tmp_path, tmp_path / "m", *(tmp_path / "m").iterdir()]
    assert len(parts) == 5 and {path.stat().st_ino for path in parts} <= synced


def test_names_in_any_script_are_written_whatever_the_locale(tmp_path):
    code = (
        "import sys\n"
        "from c2ser_jax.training.checkpoint import ModelDescription, write_model\n"
        "description = ModelDescription('emotion2vec', {}, ['fr\\xf6hlich'])\n"
        "write_model(sys.argv[1], description, [], trained_on=[{'id': '\\u751f\\u6c14'}])\n"
    )
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], check=True, env={**os.environ, **plain}
    )
    assert read_description(tmp_path / "m").labels == ["fröhlich"]
    assert read_trained_on(tmp_path / "m") == [{"id": "生气"}]


def test_names_must_be_leaf_or_branch():
    assert nest({"a/b": 1, "a/c/d": 2}) == {"a": {"b": 1, "c": {"d": 2}}}
    for names in (["a", "a/b"], ["a/b", "a"]):
        with pytest.raises(UserError, match="'a"):
            nest(dict.fromkeys(names, 0))


def test_reading_a_model_needs_neither_jax_nor_orbax():
    code = (
        "import sys, c2ser_jax.training.checkpoint; "
        "sys.exit(bool({'jax', 'orbax', 'flax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
