"""Writes a Qwen2 model directory back as a Hugging Face folder, its adapter as a peft folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.models.qwen2 import Qwen2Config
from c2ser_jax.training.checkpoint import flatten, read_carried, read_description, read_params
from conversions.export import from_disk, write_flat
from conversions.model_folder import write_folder
from conversions.qwen2 import ADAPTER_TABLE, TABLE
from conversions.qwen2_import import ADAPTER_FILES, KIND
from conversions.reader import Checkpoint
from conversions.source_tree import TREE_LEAF, read_tree
from conversions.torch_writer import OutTensor
from conversions.verify import compare

ADAPTER_FOLDER = "lora_adapter"


def export(directory: Path, target: Path) -> str:
    """Writes the folder `target`; an adapter goes into its subfolder `lora_adapter`.

    Returns a sentence about what was written. Raises `UserError` when `target` exists, can't be
    written, or the directory holds something else.
    """
    if target.exists():
        raise UserError(f"{target} exists; give another name or remove it first")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is not a directory; create it first")
    tree, notes = source_layout(directory)
    factors = adapter_tensors(directory)
    try:
        count = write_folder(target, tree, notes)
        told = f"wrote {target}: {count} weight files and {len(tree['files'])} others"
        if factors:
            place = target / ADAPTER_FOLDER
            place.mkdir()
            text = json.dumps(adapter_config(directory), indent=1) + "\n"
            (place / ADAPTER_FILES[0]).write_text(text)
            write_flat(place / ADAPTER_FILES[1], factors, {"format": "pt"})
            told += f", and the adapter in {ADAPTER_FOLDER}"
        return told
    except OSError as error:
        raise UserError(f"{target} can't be written: {error.strerror or error}") from error


def verify(checkpoint: Checkpoint, directory: Path) -> int:
    """Prints how many numbers differ from the source's; returns 0 when none does, else 1."""
    exported, _ = source_layout(directory)
    counts, differences = {"tensors": 0, "values": 0}, []
    compare(checkpoint.tree, exported, (), counts, differences)
    for line in differences[:10]:
        print(f"differs: {line}")
    print(
        f"weights: {counts['tensors']} tensors and {counts['values']} other values of "
        f"{checkpoint.path.name} compared, {len(differences)} differ"
    )
    return 1 if differences else 0


def source_layout(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """({"files", "state_dict"} with `OutTensor` leaves, the folder's notes) of a directory."""
    cfg, params = _read(directory)
    carried = read_carried(directory)
    if TREE_LEAF not in carried:
        config = json.dumps(cfg.to_huggingface(), indent=1).encode()
        state = _named(TABLE, params)
        return {"files": {"config.json": config}, "state_dict": state}, {"format": "pt"}
    kept: dict[str, OutTensor] = {}

    def weight(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> OutTensor:
        match = TABLE.match(name)
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
    is_sound = isinstance(tree, dict) and isinstance(notes.get("metadata"), dict)
    is_sound &= all(isinstance(tree.get(key), dict) for key in ("files", "state_dict"))
    if not is_sound or not all(isinstance(data, bytes) for data in tree["files"].values()):
        raise UserError(f"{directory} keeps a damaged copy of its source's layout; convert again")
    return tree, notes["metadata"]


def adapter_tensors(directory: Path) -> dict[str, OutTensor]:
    """The factors under peft's names; empty without an adapter."""
    _, params = _read(directory)
    return _named(ADAPTER_TABLE, params)


def adapter_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json: the source's own, or one of the model's sizes."""
    cfg, _ = _read(directory)
    stored = read_description(directory).extra.get("adapter_config")
    if isinstance(stored, dict) or cfg.lora is None:
        return dict(stored or {})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": cfg.lora.rank,
        "lora_alpha": cfg.lora.alpha,
        "lora_dropout": cfg.lora.dropout,
        "target_modules": sorted(cfg.lora.targets),
        "bias": "none",
        "inference_mode": True,
        "base_model_name_or_path": "..",
    }


def _read(directory: Path) -> tuple[Qwen2Config, dict[str, np.ndarray]]:
    description = read_description(directory)
    if description.kind != KIND:
        raise UserError(f"{directory} holds a {description.kind}, not a Qwen2")
    return Qwen2Config.from_dict(description.model), flatten(read_params(directory))


def _named(table: Any, params: Mapping[str, np.ndarray]) -> dict[str, OutTensor]:
    """The parameters under the names of one table."""
    tree = {}
    for path, leaf in params.items():
        for name, shape, match in table.sources(path, leaf.shape):
            part = match.within(leaf, shape)
            if part is not None:
                tree[name] = from_disk(part, part.dtype)
    return tree
