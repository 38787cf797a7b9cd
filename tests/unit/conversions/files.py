"""Small checkpoint files for the tests, sound and unsound, made without torch."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from conversions.tensors import LazyTensor
from conversions.torch_writer import OutTensor, Pickler

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def tensor(values: Any, dtype: Any = np.float32) -> OutTensor:
    array = np.asarray(values, dtype)
    return OutTensor(array.shape, array.dtype, lambda: array)


def out_tree(value: Any) -> Any:
    """A tree of arrays or lazy tensors with `OutTensor` leaves, ready to be written."""
    if isinstance(value, dict):
        return type(value)((key, out_tree(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(out_tree(item) for item in value)
    if isinstance(value, LazyTensor):
        return OutTensor(value.shape, value.dtype, value.read)
    return tensor(value, value.dtype) if isinstance(value, np.ndarray) else value


def zip_bytes(data: bytes, parts: dict[str, bytes] | None = None, **options: Any) -> bytes:
    """A zip checkpoint with the given pickle and stored parts."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, part in (parts or {}).items():
            archive.writestr(f"archive/data/{name}", part)
        for name, extra in options.get("members", {}).items():
            archive.writestr(name, extra)
    return file.getvalue()


def legacy_bytes(tree: Any, *, data: bytes | None = None, little_endian: bool = True) -> bytes:
    """An old-format checkpoint of a tree with `OutTensor` leaves (or with the pickle `data`)."""
    pickler = Pickler()
    head = pickler.dump(tree)
    system = {
        "protocol_version": 1001,
        "little_endian": little_endian,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    out = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, system)]
    out += [
        head if data is None else data,
        pickle.dumps([str(i) for i in range(len(pickler.tensors))], 2),
    ]
    for item in pickler.tensors:
        values = np.asarray(item.make(), order="C")
        out.append(struct.pack("<q", values.size) + values.tobytes())
    return b"".join(out)


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage") -> bytes:
    """Pickle operations that leave a storage on the stack."""
    return (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
        + number(count) + b"tQ"
    )  # fmt: skip


def rebuilt(
    offset: int = 0, shape: tuple = (2, 3), strides: tuple = (3, 1), part: bytes | None = None
) -> bytes:
    """Pickle operations that leave a tensor on the stack."""
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + (part or storage()) + number(offset)
        + numbers[0] + numbers[1] + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def text(word: str) -> bytes:
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def entry(operations: bytes) -> bytes:
    """A whole pickle: {"x": what the operations leave}."""
    return b"\x80\x02}" + text("x") + operations + b"s."


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
