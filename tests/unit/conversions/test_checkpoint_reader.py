"""The reader gives what was written, reads only what is asked, and refuses unsound files."""

import builtins
import json
import math
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from c2ser_jax.errors import UserError
from conversions import tensors
from conversions.reader import open_checkpoint, read_state_dict
from conversions.tensors import Extent, LazyTensor
from conversions.torch_writer import write_torch
from tests.golden_roots import golden_cases
from tests.unit.conversions.files import (
    entry,
    legacy_bytes,
    out_tree,
    rebuilt,
    safetensors_bytes,
    storage,
    tensor,
    text,
    write,
    zip_bytes,
)

DTYPES = "float32 float64 float16 int64 int32 int16 int8 uint8 bool complex64 uint16".split()


def some_tree() -> dict:
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.standard_normal((3, 5)) * 9).astype(name) for name in DTYPES if name[0] != "c"
    }
    arrays["complex64"] = rng.standard_normal((2, 4)).astype(np.complex64)
    arrays["bfloat16"] = rng.standard_normal((4, 2, 3)).astype(ml_dtypes.bfloat16)
    arrays["scalar"] = np.array(3, np.int64)
    arrays["empty"] = np.zeros((0, 7), np.float32)
    return {
        "model": OrderedDict(arrays),
        "cfg": {
            "a": None,
            3: (1, -2.5, "词"),
            "deep": [{"b": [True, False, 1 << 80, b"\x00\xff"]}],
        },
        "nan": [math.inf, 2**31, -1, -(2**40)],
    }


def assert_same(read, written):
    if isinstance(written, np.ndarray):
        values = read.read()
        assert values.dtype == written.dtype and values.shape == written.shape
        assert values.tobytes() == written.tobytes()
        blocks = [block for _, block in read.blocks()]
        assert b"".join(block.tobytes() for block in blocks) == written.tobytes()
    elif isinstance(written, dict):
        assert type(read) is type(written) and list(read) == list(written)
        for key in written:
            assert_same(read[key], written[key])
    elif isinstance(written, list | tuple):
        assert type(read) is type(written) and len(read) == len(written)
        for a, b in zip(read, written, strict=True):
            assert_same(a, b)
    else:
        assert type(read) is type(written) and read == written


def test_a_zip_file_gives_back_every_type_of_value(tmp_path):
    write_torch(tmp_path / "a.pt", out_tree(some_tree()))
    opened = open_checkpoint(tmp_path / "a.pt")
    assert opened.format == "torch zip"
    assert_same(opened.tree, some_tree())


def test_an_old_format_file_gives_back_every_type_of_value(tmp_path):
    tree = some_tree()
    del tree["model"]["uint16"]  # the old format has no such storage
    opened = open_checkpoint(write(tmp_path, "a.pt", legacy_bytes(out_tree(tree))))
    assert opened.format == "torch legacy"
    assert_same(opened.tree, tree)


def test_a_safetensors_file_equals_the_reference_library(tmp_path):
    arrays = {name: array for name, array in some_tree()["model"].items() if name[0] != "c"}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", {"made": "here"})
    opened = open_checkpoint(tmp_path / "a.safetensors")
    assert opened.format == "safetensors" and opened.notes == {"made": "here"}
    assert opened.tree.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(opened.tree[name], array)


def test_old_files_written_on_a_gpu_are_read(tmp_path):
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    data = legacy_bytes(out_tree(tree)).replace(text("cpu"), text("cuda:0"))
    assert text("cuda:0") in data
    assert_same(open_checkpoint(write(tmp_path, "a.pt", data)).tree, tree)
    for root in golden_cases("downstream"):
        for path in root.glob("*/*.pth.tar"):  # real ones, where the wider collection is there
            opened = open_checkpoint(path)
            leaves = opened.tree.get("state_dict", opened.tree)
            values = [leaf.read() for leaf in leaves.values() if isinstance(leaf, LazyTensor)]
            assert opened.format == "torch legacy" and len(values) >= 12
            assert all(np.isfinite(value).all() for value in values)


def test_golden_state_dicts_have_the_shapes_of_their_description():
    for case in golden_cases("emotion2vec/training_checkpoint_tiny"):
        shapes = json.loads((case / "meta.json").read_text())["state_dict_shapes"]
        state = read_state_dict(case / "checkpoint_last.pt")
        teacher = state.pop("_ema")
        assert {name: list(value.shape) for name, value in state.items()} == shapes
        assert len(teacher) == 38
        assert all(np.isfinite(value).all() for value in state.values())


def test_only_the_asked_tensor_is_read(tmp_path, monkeypatch):
    tree = {"a": np.arange(6, dtype=np.float32), "b": np.ones(500_000, np.float32)}
    write_torch(tmp_path / "a.pt", out_tree(tree))
    opened = open_checkpoint(tmp_path / "a.pt")
    read = []

    class Counting:
        def __init__(self, *arguments):
            self._file = builtins.open(*arguments)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def seek(self, *arguments):
            return self._file.seek(*arguments)

        def readinto(self, buffer):
            read.append(len(buffer))
            return self._file.readinto(buffer)

    monkeypatch.setattr(tensors, "open", Counting, raising=False)
    assert opened.tree["a"].read().tolist() == [0, 1, 2, 3, 4, 5]
    assert read == [24]


def test_strided_tensors_keep_their_order(tmp_path):
    parts = {"0": np.arange(6, dtype="<f4").tobytes()}
    data = entry(rebuilt(shape=(3, 2), strides=(1, 3)))
    read = open_checkpoint(write(tmp_path, "a.pt", zip_bytes(data, parts))).tree["x"]
    assert read.read().tolist() == [[0, 3], [1, 4], [2, 5]]
    ((_, block),) = read.blocks()
    assert block.tolist() == [[0, 3], [1, 4], [2, 5]]
    data = entry(rebuilt(offset=1, shape=(2, 2), strides=(3, 1)))
    read = open_checkpoint(write(tmp_path, "b.pt", zip_bytes(data, parts))).tree["x"]
    assert read.read().tolist() == [[1, 2], [4, 5]]


def test_large_tensors_come_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 64)
    values = np.arange(70, dtype=np.float32).reshape(10, 7)
    write_torch(tmp_path / "a.pt", out_tree({"x": values}))
    read = open_checkpoint(tmp_path / "a.pt").tree["x"]
    blocks = list(read.blocks())
    assert [rows.stop - rows.start for rows, _ in blocks] == [2] * 5
    assert np.array_equal(np.concatenate([block for _, block in blocks]), values)
    assert np.array_equal(read.read(), values)


def test_a_damaged_tensor_is_noticed_by_its_checksum(tmp_path):
    write_torch(tmp_path / "a.pt", out_tree({"x": np.ones(1000, np.float32)}))
    data = bytearray((tmp_path / "a.pt").read_bytes())
    place = data.index(np.ones(4, np.float32).tobytes())
    data[place + 100] ^= 1
    read = open_checkpoint(write(tmp_path, "b.pt", bytes(data))).tree["x"]
    with pytest.raises(UserError, match="checksum"):
        read.read()


SIX = {"0": bytes(24)}


@pytest.mark.parametrize(
    ("operations", "parts", "sentence"),
    [
        (rebuilt(shape=(2, 4), strides=(4, 1)), SIX, "reaches beyond"),
        (rebuilt(offset=1), SIX, "reaches beyond"),
        (rebuilt(shape=(2, 3), strides=(1 << 40, 1)), SIX, "reaches beyond"),
        (rebuilt(shape=(1000, 1000), strides=(0, 0)), SIX, "repeats stored elements"),
        (rebuilt(shape=(2, 3, 1)), SIX, "strides"),
        (rebuilt(shape=(-2, 3)), SIX, "impossible shape"),
        (rebuilt(shape=(1 << 60, 3)), SIX, "impossible shape"),
        (rebuilt(part=storage(count=7)), SIX, "declares 28 bytes"),
        (rebuilt(part=storage(count=1 << 40)), SIX, "declares"),
        (rebuilt(part=storage(count=1 << 60)), SIX, "names a storage"),
        (rebuilt(part=storage(key="../x")), SIX, "lacks its stored part"),
        (rebuilt(part=storage(kind="QInt8Storage")), SIX, "asks for 'torch.QInt8Storage'"),
        (rebuilt(), {}, "lacks its stored part"),
        (rebuilt(part=b"K\x01"), SIX, "not a storage"),
        (storage(), SIX, "reference to code or storage"),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, operations, parts, sentence):
    path = write(tmp_path, "a.pt", zip_bytes(entry(operations), parts))
    with pytest.raises(UserError, match=sentence):
        open_checkpoint(path)


def sound_header(**changes):
    return {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (sound_header(shape=[2, 4]), "reaches beyond"),
        (sound_header(shape=[1, 3]), "wrongly"),
        (sound_header(shape=[-2, -3]), "wrongly"),
        (sound_header(shape=[True, 6]), "wrongly"),
        (sound_header(data_offsets=[0, 48]), "wrongly"),
        (sound_header(data_offsets=[-24, 0]), "wrongly"),
        (sound_header(data_offsets=[24, 0]), "wrongly"),
        (sound_header(dtype="F99"), "wrongly"),
        (sound_header() | {"y": sound_header()["x"]}, "overlap"),
        (b'{"x":1,"x":2}', "names a tensor twice"),
        (b"{" * 200_000, "damaged safetensors header"),
        (b"{nonsense}", "damaged safetensors header"),
        ({"x": 3}, "wrongly"),
        ({"__metadata__": 3}, "damaged safetensors header"),
    ],
)
def test_unsound_safetensors_are_refused(tmp_path, header, sentence):
    path = write(tmp_path, "a.safetensors", safetensors_bytes(header, bytes(24)))
    with pytest.raises(UserError, match=sentence):
        open_checkpoint(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    data = (1 << 62).to_bytes(8, "little") + b"{}"
    with pytest.raises(UserError, match="longer header"):
        open_checkpoint(write(tmp_path, "a.safetensors", data))


def test_places_that_hold_no_checkpoint_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(UserError, match="is not a file"):
            open_checkpoint(path)
    for name, data in {"empty": b"", "text": b"hello world", "zeros": bytes(100)}.items():
        with pytest.raises(UserError, match="neither a PyTorch checkpoint"):
            open_checkpoint(write(tmp_path, name, data))


def test_a_lazy_tensor_checks_itself(tmp_path):
    extent = Extent(tmp_path / "a", 0, 24)
    with pytest.raises(UserError, match="negative"):
        LazyTensor((2, 3), np.dtype(np.float32), extent, (3, -1))
    assert LazyTensor((2, 3), np.dtype(np.float32), extent, (3, 1)).contiguous
    assert not LazyTensor((2, 3), np.dtype(np.float32), extent, (1, 2)).contiguous
    assert tensor([1.0]).nbytes == 4


def test_archives_with_64_bit_records_are_read(tmp_path, monkeypatch):
    """Files beyond 4 GB use wider records; a lower limit makes small ones use them too."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    write_torch(tmp_path / "a.pt", out_tree(some_tree() | {"x": np.arange(2000)}))
    data = (tmp_path / "a.pt").read_bytes()
    assert b"PK\x06\x06" in data and b"PK\x06\x07" in data and b"\xff" * 8 in data
    assert_same(open_checkpoint(tmp_path / "a.pt").tree, some_tree() | {"x": np.arange(2000)})
    end = data.rindex(b"PK\x05\x06")
    wide = data[: end + 8] + b"\xff" * 12 + data[end + 20 :]  # now only the 64-bit record tells
    assert_same(open_checkpoint(write(tmp_path, "b.pt", wide)).tree["x"], np.arange(2000))
    record = data.rindex(b"PK\x06\x06")
    broken = wide[: record + 40] + b"\xff" * 8 + wide[record + 48 :]
    with pytest.raises(UserError, match="table of contents"):
        open_checkpoint(write(tmp_path, "c.pt", broken))
