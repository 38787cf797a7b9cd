"""Writes and reads the safetensors format one leaf at a time, with numpy alone.

Layout (huggingface/safetensors, README "Format"): 8 bytes little-endian header length, a JSON
header `{name: {"dtype", "shape", "data_offsets": [begin, end]}}` padded with spaces to a multiple
of 8, then the leaves' bytes without holes. Leaves are written widest type first, so that every leaf
is aligned and can be memory-mapped. Files are untrusted: the header is checked against the file's
size before anything is built from it.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from c2ser_jax.errors import UserError

Leaf = tuple[str, tuple[int, ...], Any, Callable[[], np.ndarray]]
"""(name, shape, dtype, function that makes the array when its turn to be written comes)."""

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 32


def write_safetensors(path: Path, leaves: Iterable[Leaf]) -> None:
    """Writes `leaves` to `path` and the disk, holding one array in memory at a time.

    Errors: ValueError when an array is not as announced, or a name comes twice.
    """
    ordered = sorted(leaves, key=lambda leaf: -np.dtype(leaf[2]).itemsize)
    header: dict[str, Any] = {}
    position = 0
    for name, shape, dtype, _ in ordered:
        if name in header or name in ("", "__metadata__"):
            raise ValueError(f"the leaf name {name!r} comes twice or is reserved")
        if np.dtype(dtype) not in _NAMES:
            raise ValueError(f"leaf {name!r}: safetensors has no dtype {np.dtype(dtype)}")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": [int(n) for n in shape],
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape, dtype, make in ordered:
            array = np.asarray(make())
            if array.shape != tuple(shape) or array.dtype != np.dtype(dtype):
                raise ValueError(
                    f"leaf {name!r} is {array.dtype}{list(array.shape)}, "
                    f"announced as {np.dtype(dtype)}{list(shape)}"
                )
            # A view as bytes: bfloat16 has no buffer format of its own.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array
        file.flush()
        os.fsync(file.fileno())


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the leaves of an untrusted file, read-only and mapped from the disk, in file order.

    Errors: UserError when the file is missing, cut off, or its header does not fit its bytes.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = _read_header(path, file, size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    begin = header.pop("", 0)
    data = np.memmap(path, np.uint8, "r") if size > begin else np.empty(0, np.uint8)
    leaves: dict[str, np.ndarray] = {}
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(path, *item)):
        dtype, shape, start, stop = _checked(path, name, entry, size - begin)
        if start != position:
            raise UserError(f"{path} is damaged: the bytes of {name!r} overlap or leave a hole")
        position = stop
        leaves[name] = np.asarray(data[begin + start : begin + stop].view(dtype).reshape(shape))
    if position != size - begin:
        raise UserError(f"{path} is damaged: {size - begin - position} bytes belong to no leaf")
    return leaves


def _read_header(path: Path, file: Any, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
        raise UserError(f"{path} is damaged or no safetensors file: it has no complete header")
    try:
        header = json.loads(file.read(length).decode())
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its header is no JSON") from error
    if not isinstance(header, dict) or "" in header:
        raise UserError(f"{path} is damaged: its header is no table of named leaves")
    header.pop("__metadata__", None)
    header[""] = 8 + length  # where the data begin; the empty name was refused above
    return header


def _begin(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise UserError(f"{path} is damaged: leaf {name!r} has no valid data_offsets")
    return offsets[0], offsets[1]


def _checked(path: Path, name: str, entry: dict[str, Any], size: int) -> tuple[Any, Any, int, int]:
    start, stop = entry["data_offsets"]
    shape = entry.get("shape")
    dtype = DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise UserError(f"{path}: leaf {name!r} has the unknown dtype {entry.get('dtype')!r}")
    if not (isinstance(shape, list) and all(map(_is_size, shape)) and len(shape) < _MAX_DIMENSIONS):
        raise UserError(f"{path} is damaged: leaf {name!r} has no valid shape")
    if not start <= stop <= size or math.prod(shape) * dtype.itemsize != stop - start:
        raise UserError(f"{path} is cut off or damaged: the bytes of {name!r} do not fit its shape")
    return dtype, tuple(shape), start, stop


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
