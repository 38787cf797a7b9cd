"""Tensors that still lie in their file: shape and dtype known, values read only when asked."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from c2ser_jax.errors import UserError

BLOCK_BYTES = 8 << 20

TORCH_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}

TORCH_DTYPES = {
    **{name: name for name in sorted(set(TORCH_STORAGES.values()))},
    **{name: name for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")},
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
}

SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def dtype_named(name: str) -> np.dtype:
    """The numpy dtype of a torch dtype's name ("bfloat16" and the float8 types from ml_dtypes)."""
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


@dataclass(frozen=True)
class Extent:
    """A run of `size` bytes at `start` of a file; `crc` is its CRC-32, 0 where there is none."""

    path: Path
    start: int
    size: int
    crc: int = 0


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor lying in a file: element `index` is at `offset + sum(index * strides)` of `extent`.

    Strides and offset count elements. The constructor refuses what would reach outside the extent
    or name one stored element twice, so a small file can't claim a large tensor.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    extent: Extent
    strides: tuple[int, ...]
    offset: int = 0

    def __post_init__(self):
        where = f"{self.extent.path}: a tensor of shape {list(self.shape)}"
        if len(self.shape) != len(self.strides) or len(self.shape) > 16:
            raise UserError(f"{where} has {len(self.strides)} strides; the file is damaged")
        if min((0, self.offset, *self.shape, *self.strides)) < 0:
            raise UserError(f"{where} has a negative size, stride or offset; the file is damaged")
        if self.size and (self.offset + self.span) * self.dtype.itemsize > self.extent.size:
            raise UserError(
                f"{where} and offset {self.offset} reaches beyond its {self.extent.size} stored "
                "bytes; the file is damaged"
            )
        if self.size > self.span:
            raise UserError(f"{where} repeats stored elements; save it with .contiguous() first")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once read."""
        return self.size * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Stored elements from the first to the last one used."""
        if not self.size:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def contiguous(self) -> bool:
        """True when the elements lie one after the other in C order."""
        return self.strides == contiguous_strides(self.shape) or self.size <= 1

    def read(self) -> np.ndarray:
        """The whole tensor, dtype[shape], as a fresh array in C order."""
        if not self.contiguous:
            return self._read_strided()
        values = np.empty(self.shape, self.dtype)
        filled = values.reshape(-1).view(np.uint8)
        for start, part in self._bytes():
            filled[start : start + len(part)] = part
        return values

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Pairs (rows of the first axis, their values), at most about 8 MiB a time.

        A tensor without axes comes as one block with `slice(0, 1)` and shape [1].
        """
        rows = self.shape[0] if self.shape else 1
        tail = self.shape[1:]
        row_bytes = math.prod(tail) * self.dtype.itemsize
        if not self.contiguous or row_bytes > 4 * BLOCK_BYTES:
            yield slice(0, rows), self.read().reshape(rows, *tail)
            return
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for start, part in self._bytes(step * row_bytes) if self.size else ():
            row, count = start // row_bytes, len(part) // row_bytes
            yield slice(row, row + count), part.view(self.dtype).reshape(count, *tail)

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """Rows `start` to `stop` of the first axis, still lying in the file."""
        offset = self.offset + start * self.strides[0]
        shape = (stop - start, *self.shape[1:])
        return LazyTensor(shape, self.dtype, self.extent, self.strides, offset)

    def _bytes(self, step: int = BLOCK_BYTES) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces (start, uint8[<= step]) of a contiguous tensor; checks a whole extent's CRC."""
        start = self.extent.start + self.offset * self.dtype.itemsize
        whole = self.extent.crc and start == self.extent.start and self.nbytes == self.extent.size
        crc = 0
        with open(self.extent.path, "rb") as file:
            file.seek(start)
            for done in range(0, self.nbytes, step):
                part = np.empty(min(step, self.nbytes - done), np.uint8)
                if file.readinto(part.data) != len(part):
                    raise UserError(f"{self.extent.path} ends early; copy or download it again")
                if whole:
                    crc = zlib.crc32(part.data, crc)
                yield done, part
        if whole and crc != self.extent.crc:
            raise UserError(
                f"{self.extent.path}: the stored checksum of a tensor of shape {list(self.shape)} "
                "doesn't match its bytes; copy or download the file again"
            )

    def _read_strided(self) -> np.ndarray:
        flat = LazyTensor((self.span,), self.dtype, self.extent, (1,), self.offset).read()
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps))


def same_values(a: LazyTensor, b: LazyTensor) -> bool:
    """True when both hold the same numbers, whatever their types; reads some MiB at a time.

    Zeros of different sign and NaNs of different bits count as different.
    """
    if a.shape != b.shape:
        return False
    places = [(t.dtype, t.extent, t.offset, t.strides) for t in (a, b)]
    if places[0] == places[1]:
        return True
    for rows, block in a.blocks():
        other = b.rows(rows.start, rows.stop).read() if b.shape else b.read().reshape(1)
        if a.dtype != b.dtype:  # float64 holds the numbers of every shorter type
            block, other = block.astype(np.float64), other.astype(np.float64)
        if block.tobytes() != other.tobytes():
            return False
    return True


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-ordered array: (12, 4, 1) for (2, 3, 4)."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
