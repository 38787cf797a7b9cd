"""The pickle interpreter builds data, executes nothing and ends on every abuse."""

import io
import math
import pickle
import pickletools
import struct
import sys
import time
import zipfile
from argparse import Namespace
from collections import OrderedDict
from types import ModuleType

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from conversions.pickle_machine import MAX_PICKLE_BYTES, Machine, Refused
from conversions.reader import open_checkpoint
from conversions.torch_globals import BUILDERS
from conversions.torch_writer import Pickler, write_torch
from tests.unit.conversions.files import (
    entry,
    legacy_bytes,
    rebuilt,
    tensor,
    text,
    write,
    zip_bytes,
)


def read(data: bytes):
    def no_storage(_):
        raise Refused("no storage here")

    return Machine(BUILDERS, no_storage).read(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_equal_the_standard_library(protocol):
    value = {
        "a": [1, -1, 255, 256, 65536, -(2**31), 2**31, 2**100, -(2**100)],
        "b": (1.5, -0.0, math.inf, None, True, False, "text", "词", "", ()),
        "c": OrderedDict(x=1, y=[(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]),
        7: {"nested": {}},
    }
    assert read(pickle.dumps(value, protocol)) == value


def test_bytes_come_back_from_every_protocol():
    for protocol in (2, 3, 4, 5):
        assert read(pickle.dumps(b"\x00\xffab", protocol)) == b"\x00\xffab"


def test_numpy_scalars_become_plain_numbers():
    for value in (np.float64(1.5), np.float32(0.25), np.int64(-7), np.bool_(True), np.uint8(3)):
        got = read(pickle.dumps(value, 2))
        assert got == value and type(got) in (float, int, bool)


def test_a_namespace_is_kept_as_a_plain_table(tmp_path):
    data = pickle.dumps({"args": Namespace(width=3, names=["a"])}, 2)
    path = write(tmp_path, "a.pt", zip_bytes(data))
    assert open_checkpoint(path).tree == {"args": {"width": 3, "names": ["a"]}}


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def evil_pickles() -> dict[str, bytes]:
    """Pickles that run code when Python's own unpickler reads them."""
    import os
    import subprocess

    command = "echo executed > PWNED"
    made = {
        f"{name} {protocol}": pickle.dumps([Evil(function, *arguments)], protocol)
        for protocol in (0, 2, 4)
        for name, function, arguments in (
            ("system", os.system, (command,)),
            ("eval", eval, ("open('PWNED', 'w').close()",)),
            ("exec", exec, ("open('PWNED', 'w').close()",)),
            ("open", open, ("PWNED", "w")),
            ("popen", subprocess.Popen, (command,)),
            ("getattr", getattr, (os, "system")),
            ("import", __import__, ("antigravity",)),
        )
        if name != "getattr"
    }
    made["inst"] = b"(S'echo executed > PWNED'\nios\nsystem\n."
    made["obj"] = b"(cos\nsystem\nS'echo executed > PWNED'\no."
    made["newobj"] = b"\x80\x02cos\nsystem\n" + text(command) + b"\x85\x81."
    made["build"] = b"\x80\x02ctorch\nFloatStorage\n}" + text("__setstate__") + b"Nsb."
    made["dotted"] = (
        b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93."
    )
    made["whole module"] = b"\x80\x02cbuiltins\n__dict__\n."
    made["extension"] = b"\x80\x02\x82\x01."
    made["text persistent id"] = b"\x80\x02Pos.system\n."
    made["call of a type"] = b"\x80\x02ctorch\nFloatStorage\n)R."
    made["call of text"] = b"\x80\x02" + text("os.system") + b")R."
    made["numpy object"] = b"\x80\x02cnumpy\ndtype\n" + text("O") + b"\x85R."
    made["numpy load"] = b"\x80\x02cnumpy\nload\n" + text("x") + b"\x85R."
    made["torch load"] = b"\x80\x02ctorch\nload\n" + text("x") + b"\x85R."
    return made


@pytest.mark.parametrize("name", sorted(evil_pickles()))
def test_code_in_a_pickle_is_refused_and_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = evil_pickles()[name]
    for path in (
        write(tmp_path, "zip.pt", zip_bytes(data)),
        write(tmp_path, "old.pt", legacy_bytes({}, data=data)),
    ):
        with pytest.raises(UserError) as refusal:
            open_checkpoint(path)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "PWNED").exists()


def test_the_evil_pickles_do_run_when_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(evil_pickles()["exec 2"])
    assert (tmp_path / "PWNED").exists()


def nested(levels: int) -> bytes:
    return b"\x80\x02" + b"](" * levels + b"e" * levels + b"."


def laughs(levels: int) -> bytes:
    """Lists that hold the list before twice: 2 ** levels leaves in a few bytes."""
    data = b"\x80\x02]q\x00"
    for level in range(levels):
        data += b"0](" + b"h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1])
    return data + b"."


ABUSES = {
    "deep nesting": nested(100_000),
    "billion laughs": laughs(60),
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "huge memo index": b"\x80\x02]r\xff\xff\xff\x7fj\xfe\xff\xff\x7f.",
    "missing memo": b"\x80\x02h\x05.",
    "long integer": b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x01" * 100_000 + b".",
    "long decimal": b"L" + b"9" * 50_000 + b"L\n.",
    "promised text": b"\x80\x02X\xff\xff\xff\xff.",
    "promised long text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "promised bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".",
    "line without end": b"c" + b"a" * 300_000,
    "unhashable key": b"\x80\x02}]K\x01s.",
    "tuple key": b"\x80\x02})K\x01s.",
    "long key": b"\x80\x02}" + text("x" * 2000) + b"K\x01s.",
    "long text often": b"\x80\x02](" + text("x" * 1_000_000) + b"q\x00" + b"h\x00" * 2000 + b"e.",
    "huge key": b"\x80\x02}\x8a\x10" + b"\x7f" * 16 + b"K\x01s.",
    "odd items": b"\x80\x02}(K\x01u.",
    "items of a list": b"\x80\x02](K\x01K\x02u.",
    "append to a tuple": b"\x80\x02)K\x01a.",
    "empty stack": b"\x80\x020.",
    "no mark": b"\x80\x02K\x01t.",
    "mark at the end": b"\x80\x02(.",
    "no stop": b"\x80\x02K\x01",
    "nothing": b"",
    "unknown operation": b"\x80\x02\xff.",
    "set": b"\x80\x04\x8f.",
    "buffer": b"\x80\x05\x97.",
    "many operations": b"\x80\x02" + b"K\x010" * 600_000 + b".",
    "bad float": b"F1e5x\n.",
    "bad escape": b"S'\\xzz'\n.",
    "build on a number": b"\x80\x02K\x01}b.",
    "dict of pairs with lists as keys": b"\x80\x02ccollections\nOrderedDict\n]]]a]ea\x85R.",
    "scalar of text": b"\x80\x02cnumpy._core.multiarray\nscalar\n"
    + text("a")
    + text("b")
    + b"\x86R.",
}


SLOW = ("many operations", "billion laughs", "deep nesting")


@pytest.mark.parametrize("name", sorted(ABUSES))
def test_abuse_ends_quickly_with_one_sentence(name, tmp_path):
    files = {"zip.pt": zip_bytes(ABUSES[name])}
    if name not in SLOW:
        files["old.pt"] = legacy_bytes({}, data=ABUSES[name])
    for file, data in files.items():
        path = write(tmp_path, file, data)
        start = time.perf_counter()
        with pytest.raises(UserError) as refusal:
            open_checkpoint(path)
        assert time.perf_counter() - start < 10
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


def test_a_pickle_may_not_be_endless():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return b"\x00" * size

        def readline(self, size=-1):
            return b"0" * size

    data = b"\x80\x04\x8e" + struct.pack("<Q", MAX_PICKLE_BYTES + 1)
    start = io.BytesIO(data)

    class Then(Endless):
        def read(self, size=-1):
            return start.read(size) or b"\x00" * size

    with pytest.raises(Refused, match="MiB"):
        Machine(BUILDERS, lambda _: None).read(Then())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (lambda: zip_bytes(entry(rebuilt()), {"0": bytes(24)}, compression=8), "compressed"),
        (lambda: zip_bytes(b"\x80\x02N.", members={"archive/constants.pkl": b""}), "TorchScript"),
        (lambda: zip_bytes(b"\x80\x02N.", members={"archive/byteorder": b"big"}), "big-endian"),
        (lambda: zip_bytes(b"\x80\x02N.", members={"other/data.pkl": b""}), "one data.pkl"),
        (lambda: legacy_bytes({}, little_endian=False), "big-endian"),
        (lambda: pickle.dumps({"a": 1}, 2), "not a PyTorch checkpoint"),
        (lambda: legacy_bytes({"a": tensor([1.0, 2.0])})[:-3], "ends inside"),
        (lambda: legacy_bytes({"a": tensor([1.0, 2.0])})[:-12], "truncated"),
        (lambda: zip_bytes(b"\x80\x02N.")[:-30], "truncated"),
    ],
)
def test_unsound_containers_are_refused(tmp_path, data, sentence):
    with pytest.raises(UserError, match=sentence):
        open_checkpoint(write(tmp_path, "a.pt", data()))


def test_a_name_that_comes_twice_is_refused(tmp_path):
    data = zip_bytes(b"\x80\x02N.", members={"archive/datb.pkl": b"\x80\x02K\x01."})
    data = data.replace(b"datb.pkl", b"data.pkl")
    with pytest.raises(UserError, match="table of contents"):
        open_checkpoint(write(tmp_path, "a.pt", data))


def test_written_pickles_are_those_the_standard_library_reads(tmp_path, monkeypatch):
    """torch.load is the standard unpickler with a table of persistent ids: stand in for it."""
    tree = {
        "model": OrderedDict(a=tensor([[1.0, 2.0], [3.0, 4.0]]), b=tensor([1, 2], np.int64)),
        "values": [None, True, -1, 300, 1 << 70, 0.1, math.inf, "词", b"\x00\xff", (1, (2,))],
        5: {},
    }
    tree["again"] = tree["model"]["a"]
    write_torch(tmp_path / "a.pt", tree)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            begin = info.header_offset + 30 + len(info.filename) + len(info.extra)
            assert begin % 64 == 0 and info.compress_type == zipfile.ZIP_STORED
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    head = parts["archive/data.pkl"]
    pickletools.dis(head, io.StringIO())

    fake, utils = ModuleType("torch"), ModuleType("torch._utils")
    fake.FloatStorage, fake.LongStorage = "<f4", "<i8"  # type: ignore[attr-defined]

    def rebuild(storage, offset, shape, strides, requires_grad, hooks):
        assert (requires_grad, hooks, offset) == (False, OrderedDict(), 0)
        return np.lib.stride_tricks.as_strided(
            storage, shape, [n * storage.itemsize for n in strides]
        )

    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Loader(pickle.Unpickler):
        def persistent_load(self, pid):
            kind, dtype, key, device, count = pid
            assert (kind, device) == ("storage", "cpu")
            values = np.frombuffer(parts[f"archive/data/{key}"], dtype)
            assert len(values) == count
            return values

    loaded = Loader(io.BytesIO(head)).load()
    assert loaded["model"]["a"].tolist() == [[1, 2], [3, 4]] == loaded["again"].tolist()
    assert loaded["model"]["b"].tolist() == [1, 2] and loaded["model"]["b"].dtype == np.int64
    assert loaded["values"] == tree["values"] and type(loaded["model"]) is OrderedDict
    assert loaded[5] == {} and len(Pickler().dump([])) < 10
