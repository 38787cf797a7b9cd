"""Opens a Hugging Face model folder, its weights whole or in shards, and writes one back.

The tree is {"files": {name: bytes}, "state_dict": {name: LazyTensor}}: the small files (config,
tokenizer, preprocessing) travel with the weights, so that export restores the folder.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError
from conversions.export import write_flat
from conversions.reader import Checkpoint, open_checkpoint, state_dict_path
from conversions.tensors import LazyTensor
from conversions.torch_writer import OutTensor, write_torch

FORMAT = "Hugging Face folder"
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
MAX_FILE_BYTES = 32 << 20
_SMALL_FILES = (".json", ".jsonl", ".txt", ".model", ".jinja")


def open_source(path: str | Path) -> Checkpoint:
    """A checkpoint file, or a Hugging Face folder; raises `UserError` for anything unsound."""
    return open_folder(Path(path)) if Path(path).is_dir() else open_checkpoint(path)


def open_folder(folder: Path, *, needs_weights: bool = True) -> Checkpoint:
    """The folder's weights and small files; raises `UserError` for a missing shard or wrong index.

    Without `needs_weights` a folder of small files alone is sound, too. `notes` hold "weight_map",
    JSON {tensor name: file name}, and the safetensors files' metadata.
    """
    index = next((name + INDEX for name in SINGLE if (folder / (name + INDEX)).is_file()), None)
    whole = next((name for name in SINGLE if (folder / name).is_file()), None)
    if index is not None:
        tensors, weight_map, notes = _shards(folder, index)
    elif whole is not None:
        tensors, notes = _tensors(folder / whole)
        weight_map = dict.fromkeys(tensors, whole)
    elif folder.is_dir() and not needs_weights:
        tensors, weight_map, notes = {}, {}, {}
    else:
        raise UserError(
            f"{folder} holds no weights: it needs one of {', '.join(SINGLE)}, whole or in shards "
            f"with its {SINGLE[0]}{INDEX}"
        )
    tree = {"files": _small_files(folder), "state_dict": tensors}
    return Checkpoint(folder, FORMAT, tree, {**notes, "weight_map": json.dumps(weight_map)})


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that a checkpoint's tensors lie in."""
    if checkpoint.format != FORMAT:
        return [checkpoint.path]
    names = sorted(set(json.loads(checkpoint.notes["weight_map"]).values()))
    return [checkpoint.path / name for name in names]


def fingerprint(files: Iterable[Path]) -> tuple[int, str]:
    """(bytes, SHA-256) of files taken one after the other."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(1 << 20)
    for path in files:
        size += path.stat().st_size
        with open(path, "rb") as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    return size, digest.hexdigest()


def read_json_file(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """A JSON table among a folder's small files; None where there is none. Errors: UserError."""
    data = checkpoint.tree["files"].get(name)
    return None if data is None else _table(checkpoint.path / name, data)


def write_folder(folder: Path, tree: Mapping[str, Any], notes: Mapping[str, Any]) -> int:
    """Writes a folder with the tree's files and `OutTensor` weights, whole or not at all.

    `notes` are the opened folder's. Returns the number of weight files.
    """
    metadata = {str(key): str(value) for key, value in notes.items()}
    weight_map = json.loads(metadata.pop("weight_map", "{}"))
    parts: dict[str, dict[str, OutTensor]] = {}
    for name, tensor in tree["state_dict"].items():
        parts.setdefault(weight_map.get(name, SINGLE[0]), {})[name] = tensor
    names = [*tree["files"], *parts]
    if any(not is_plain(name) for name in names):
        raise UserError(f"the files of {folder} have unsound names; convert the model again")
    temporary = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, data in tree["files"].items():
            (temporary / name).write_bytes(data)
        for name, tensors in parts.items():
            if name.endswith(".safetensors"):
                write_flat(temporary / name, tensors, metadata)
            else:
                write_torch(temporary / name, tensors)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(parts)


def is_plain(name: Any) -> bool:
    """True for the name of a file right inside a folder."""
    is_name = isinstance(name, str) and 0 < len(name) < 256 and name.isprintable()
    return is_name and not name.startswith(".") and not any(c in name for c in "/\\:")


def _shards(
    folder: Path, index: str
) -> tuple[dict[str, LazyTensor], dict[str, str], dict[str, str]]:
    place = folder / index
    weight_map = _table(place, _bytes(place)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(is_plain, weight_map.values())):
        raise UserError(f"{place} has no sound weight_map; copy or download it again")
    tensors: dict[str, LazyTensor] = {}
    notes: dict[str, str] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} lacks {name}, one of the {len(set(weight_map.values()))} shards that "
                f"{index} names; copy or download it"
            )
        found, more = _tensors(folder / name)
        notes |= more
        named = {tensor for tensor, file in weight_map.items() if file == name}
        if named != found.keys():
            odd = min(named ^ found.keys())
            raise UserError(f"{folder / name} and {index} don't agree about the tensor {odd!r:.90}")
        tensors |= found
    return {name: tensors[name] for name in weight_map}, weight_map, notes


def _tensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    opened = open_checkpoint(path)
    state = opened.tree
    for key in state_dict_path(state):
        state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, LazyTensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (a table of named tensors)")
    return {str(name): tensor for name, tensor in state.items()}, opened.notes


def _small_files(folder: Path) -> dict[str, bytes]:
    """Configuration, tokenizer and preprocessing files; what is large or of another kind stays."""
    found = {}
    for path in sorted(folder.iterdir()):
        is_small = path.suffix in _SMALL_FILES and path.is_file() and is_plain(path.name)
        if is_small and path.stat().st_size <= MAX_FILE_BYTES:
            found[path.name] = _bytes(path)
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def _table(path: Path, data: bytes) -> dict[str, Any]:
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON; copy or download it again") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} is no JSON table; copy or download it again")
    return table
