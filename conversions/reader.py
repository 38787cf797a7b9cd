"""Opens any checkpoint file as an inert tree: zip and old-format PyTorch files, and safetensors.

Nothing in a file is ever executed. Tensors stay in the file until `LazyTensor.read()`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError
from conversions.archives import read_legacy_tree, read_zip_tree
from conversions.pickle_machine import Refused
from conversions.tensors import (
    SAFETENSORS_DTYPES,
    Extent,
    LazyTensor,
    contiguous_strides,
    dtype_named,
)

MAX_HEADER_BYTES = 16 << 20
WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Checkpoint:
    """An opened file: `tree` is made of dict, list, tuple, text, numbers, None and `LazyTensor`."""

    path: Path
    format: str  # "torch zip", "torch legacy" or "safetensors"
    tree: Any
    notes: dict[str, str]  # safetensors `__metadata__`, else empty


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a checkpoint's structure; raises `UserError` with one sentence for anything unsound."""
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file; give the checkpoint file itself")
        with open(path, "rb") as file:
            head = file.read(9)
        if head[:4] == b"PK\x03\x04":
            return Checkpoint(path, "torch zip", read_zip_tree(path), {})
        if head[8:9] == b"{":
            return Checkpoint(path, "safetensors", *_read_safetensors(path))
        if head[:1] == b"\x80":
            return Checkpoint(path, "torch legacy", read_legacy_tree(path), {})
    except Refused as reason:
        raise UserError(f"{path} {reason}") from reason
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    raise UserError(f"{path} is neither a PyTorch checkpoint nor a safetensors file")


def state_dict_path(tree: Any) -> tuple[str, ...]:
    """Keys from the top of a tree to its state dict, unwrapped as FunASR does.

    `state_dict`, then `model_state_dict`, then `model`, where that entry is a dictionary.
    """
    keys: tuple[str, ...] = ()
    for name in WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            keys, tree = (*keys, name), tree[name]
    return keys


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """All tensors of a file's state dict by name, read into numpy arrays; nested dicts stay nested.

    Public API for comparing small files with what was made of them: everything is in memory at
    once. Entries that are not tensors are left out.
    """
    tree = open_checkpoint(path).tree
    for key in state_dict_path(tree):
        tree = tree[key]

    def arrays(branch: dict) -> dict[str, Any]:
        return {
            str(key): value.read() if isinstance(value, LazyTensor) else arrays(value)
            for key, value in branch.items()
            if isinstance(value, LazyTensor | dict)
        }

    return arrays(tree) if isinstance(tree, dict) else {}


def _read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """({name: tensor}, metadata) of a safetensors file, its header checked against the file."""
    file_bytes = path.stat().st_size
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise Refused("declares a longer header than it has; copy or download it again")
        try:
            header = json.loads(file.read(size), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise Refused("has a damaged safetensors header") from error
    notes = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(notes, dict):
        raise Refused("has a damaged safetensors header")
    tensors = {
        name: _entry(path, name, entry, 8 + size, file_bytes) for name, entry in header.items()
    }
    ends = sorted((t.extent.start, t.extent.start + t.extent.size) for t in tensors.values())
    if any(start < end for (_, end), (start, _) in zip(ends, ends[1:], strict=False)):
        raise Refused("holds tensors that overlap")
    return tensors, {str(key): str(value) for key, value in notes.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Refused("names a tensor twice")
    return table


def _entry(path: Path, name: str, entry: Any, data: int, file_bytes: int) -> LazyTensor:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            sizes_fit = all(type(n) is int and 0 <= n < 1 << 48 for n in shape) and len(shape) <= 16
            if sizes_fit and code in SAFETENSORS_DTYPES and 0 <= start <= end <= file_bytes - data:
                dtype = dtype_named(SAFETENSORS_DTYPES[code])
                shape = tuple(shape)
                tensor = LazyTensor(
                    shape, dtype, Extent(path, data + start, end - start), contiguous_strides(shape)
                )
                if tensor.nbytes == end - start:
                    return tensor
    raise Refused(f"describes its tensor {name[:60]!r} wrongly; copy or download it again")
