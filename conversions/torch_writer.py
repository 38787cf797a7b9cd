"""Writes object trees as PyTorch zip checkpoints without torch; `torch.load` reads them safely.

The pickle uses only what `torch.load(weights_only=True)` accepts: containers, numbers, text and
`torch._utils._rebuild_tensor_v2` over stored parts.
"""

import math
import os
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversions.tensors import TORCH_STORAGES, contiguous_strides

ALIGNMENT = 64
_STORAGE_OF = {dtype: name for name, dtype in TORCH_STORAGES.items() if name != "UntypedStorage"}


@dataclass(frozen=True, eq=False)
class OutTensor:
    """A tensor to write: its values are asked for once, when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_torch(path: Path, tree: Any) -> None:
    """Writes a tree of containers, plain values and `OutTensor` to `path`, whole or not at all.

    One tensor is in memory at a time. The bytes depend on the tree alone.
    """
    pickler = Pickler()
    head = pickler.dump(tree)
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                _add(archive, "archive/data.pkl", len(head), head)
                _add(archive, "archive/byteorder", 6, b"little")
                for key, tensor in enumerate(pickler.tensors):
                    _add(archive, f"archive/data/{key}", tensor.nbytes, _bytes_of(tensor))
                _add(archive, "archive/version", 2, b"3\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _bytes_of(tensor: OutTensor) -> memoryview:
    values = np.asarray(tensor.make(), order="C")
    if values.shape != tensor.shape or values.dtype != tensor.dtype:
        raise ValueError(f"announced {tensor.dtype}{tensor.shape}, got {values.dtype}")
    return values.reshape(-1).view(np.uint8).data


def _add(archive: zipfile.ZipFile, name: str, size: int, data: Any) -> None:
    """Adds a member whose bytes begin at a multiple of 64, as torch writes them."""
    info = zipfile.ZipInfo(name)
    info.file_size = size
    wide = size * 1.05 > zipfile.ZIP64_LIMIT
    begin = archive.start_dir + 30 + len(name) + 4 + (20 if wide else 0)
    padding = -begin % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=wide) as member:
        member.write(data)


class Pickler:
    """Writes protocol 2; `tensors` are those met, in the order of their storage keys."""

    def __init__(self):
        self.tensors: list[OutTensor] = []
        self._keys: dict[int, int] = {}
        self._parts: list[bytes] = []

    def dump(self, tree: Any) -> bytes:
        """The pickle of a tree of containers, plain values and `OutTensor`."""
        self._parts = [b"\x80\x02"]
        self._write(tree)
        self._parts.append(b".")
        return b"".join(self._parts)

    def _write(self, value: Any) -> None:
        add = self._parts.append
        if value is None:
            add(b"N")
        elif isinstance(value, bool):
            add(b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            add(_integer(value))
        elif isinstance(value, float):
            add(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, bytes):
            add(b"c_codecs\nencode\n")
            self._text(value.decode("latin-1"))
            self._text("latin1")
            add(b"\x86R")
        elif isinstance(value, OutTensor):
            self._tensor(value)
        elif isinstance(value, dict):
            add(b"ccollections\nOrderedDict\n)R(" if isinstance(value, OrderedDict) else b"}(")
            for key, item in value.items():
                self._write(key)
                self._write(item)
            add(b"u")
        elif isinstance(value, list | tuple):
            add(b"](" if isinstance(value, list) else b"(")
            for item in value:
                self._write(item)
            add(b"e" if isinstance(value, list) else b"t")
        else:
            raise TypeError(f"a checkpoint can't hold a {type(value).__name__}")

    def _text(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._parts.append(b"X" + struct.pack("<I", len(data)) + data)

    def _tensor(self, tensor: OutTensor) -> None:
        if id(tensor) not in self._keys:
            self._keys[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        storage = _STORAGE_OF.get(tensor.dtype.name)
        count = math.prod(tensor.shape) if storage else tensor.nbytes
        add = self._parts.append
        add(
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            if storage
            else b"ctorch._utils\n_rebuild_tensor_v3\n(("
        )
        self._text("storage")
        add(f"ctorch\n{storage}\n".encode() if storage else b"ctorch.storage\nUntypedStorage\n")
        self._text(str(self._keys[id(tensor)]))
        self._text("cpu")
        add(_integer(count) + b"tQ" + _integer(0))
        self._write(tensor.shape)
        self._write(contiguous_strides(tensor.shape))
        add(b"\x89ccollections\nOrderedDict\n)R")
        add(b"tR" if storage else f"ctorch\n{tensor.dtype.name}\ntR".encode())


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + struct.pack("<B", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(data)) + data
