"""Writes a Whisper encoder's model directory back in its source's layout, and compares the two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import flatten, read_carried, read_description, read_params
from conversions.export import from_disk, write_flat
from conversions.model_folder import FORMAT, write_folder
from conversions.reader import Checkpoint
from conversions.source_tree import TREE_LEAF, read_tree
from conversions.torch_writer import OutTensor, write_torch
from conversions.verify import compare
from conversions.whisper import KIND, plain_name
from conversions.whisper_names import HUGGING_FACE, TABLES


def export(directory: Path, target: Path) -> str:
    """Writes `target`: a folder where the source was one, else a file; returns a sentence about it.

    Raises:
      UserError: `target` exists, can't be written, or the directory holds something else.
    """
    if target.exists():
        raise UserError(f"{target} exists; give another name or remove it first")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is not a directory; create it first")
    tree, notes, state_path = source_layout(directory)
    try:
        if notes["format"] == FORMAT and not target.suffix:
            count = write_folder(target, tree, notes["metadata"])
            return f"wrote {target}: {count} weight files and {len(tree['files'])} others"
        if target.suffix != ".safetensors" and notes["format"] != FORMAT:
            write_torch(target, tree)
            return f"wrote {target} in its source's layout ({notes['format']} before)"
        for key in state_path:
            tree = tree[key]
        if target.suffix != ".safetensors":
            write_torch(target, tree)
        else:
            metadata = {str(key): str(value) for key, value in notes["metadata"].items()}
            metadata.pop("weight_map", None)
            write_flat(target, {str(name): tensor for name, tensor in tree.items()}, metadata)
        return f"wrote {target}: {len(tree)} tensors of the state dict, nothing else"
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror or error}") from error


def verify(checkpoint: Checkpoint, directory: Path) -> int:
    """Prints how many numbers differ from the source's; returns 0 when none does, else 1."""
    exported, _, _ = source_layout(directory)
    counts, differences = {"tensors": 0, "values": 0}, []
    compare(checkpoint.tree, exported, (), counts, differences)
    for line in differences[:10]:
        print(f"differs: {line}")
    print(
        f"weights: {counts['tensors']} tensors and {counts['values']} other values of "
        f"{checkpoint.path.name} compared, {len(differences)} differ"
    )
    return 1 if differences else 0


def source_layout(directory: Path) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """(tree with `OutTensor` leaves, notes, keys to the state dict) of a model directory."""
    description = read_description(directory)
    if description.kind != KIND:
        raise UserError(f"{directory} holds a {description.kind}, not a Whisper encoder")
    params, carried = flatten(read_params(directory)), read_carried(directory)
    if TREE_LEAF not in carried:
        return _plain_tree(params), {"format": "trained here", "metadata": {"format": "pt"}}, ()
    naming = description.origin.get("layout")
    table = TABLES.get(str(naming))
    if table is None:
        raise UserError(f"{directory} names no known layout ({naming!r:.40}); convert it again")
    kept: dict[str, OutTensor] = {}

    def weight(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> OutTensor:
        match = table.match(plain_name(name))
        part = match and match.target in params and match.within(params[match.target], shape)
        if part is None or part is False:
            raise UserError(
                f"{directory} lacks the parameter that {name} {list(shape)} came from; its "
                "params.safetensors and carried.safetensors don't belong together"
            )
        return from_disk(part, dtype)

    def keep(name: str, array: np.ndarray) -> OutTensor:
        return kept.setdefault(name, from_disk(array, array.dtype))

    tree, notes = read_tree(carried, weight, keep, str(directory))
    is_sound = isinstance(notes.get("state_path"), list) and isinstance(notes.get("format"), str)
    files = tree.get("files", {}) if isinstance(tree, dict) else None
    is_sound &= isinstance(files, dict) and all(isinstance(f, bytes) for f in files.values())
    if not is_sound or not isinstance(notes.get("metadata"), dict):
        raise UserError(f"{directory} keeps a damaged copy of its source's layout; convert again")
    return tree, notes, tuple(notes["state_path"])


def _plain_tree(params: Mapping[str, np.ndarray]) -> dict[str, OutTensor]:
    """The encoder under Hugging Face's names, for a model that never was a checkpoint."""
    tree = {}
    for path, leaf in params.items():
        for name, shape, match in TABLES[HUGGING_FACE.title].sources(path, leaf.shape):
            part = match.within(leaf, shape)
            if part is not None:
                tree[name] = from_disk(part, part.dtype)
    return tree
