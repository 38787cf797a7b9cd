"""Writes a model directory back in its source's layout; one trained here, in upstream's."""

import dataclasses
import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec_config import Emotion2VecConfig
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    flatten,
    read_carried,
    read_description,
    read_params,
)
from conversions import emotion2vec
from conversions.emotion2vec_upstream import upstream_config
from conversions.source_tree import TREE_LEAF, read_tree
from conversions.tensors import SAFETENSORS_NAMES
from conversions.torch_writer import OutTensor, write_torch

_NO_SOURCE = "trained here"


def export(directory: Path, file: Path) -> str:
    """Writes `file` (.safetensors: the state dict alone; anything else: a PyTorch zip).

    Returns a sentence about what was written. Raises `UserError` when the file exists or the
    directory holds something else.
    """
    if file.exists():
        raise UserError(f"{file} exists; give another name or remove it first")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is not a directory; create it first")
    tree, notes, state_path = source_layout(directory)
    try:
        if file.suffix != ".safetensors":
            write_torch(file, tree)
            if notes["format"] == _NO_SOURCE:
                return f"wrote {file} in upstream's layout: the model was trained here"
            return f"wrote {file} in its source's layout ({notes['format']} before)"
        state = tree
        for key in state_path:
            state = state[key]
        tensors = {str(k): v for k, v in state.items() if isinstance(v, OutTensor)}
        write_flat(file, tensors, _metadata(directory, notes))
        return f"wrote {file}: {len(tensors)} tensors of the state dict, nothing else"
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror or error}") from error


def source_layout(directory: Path) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
    """(tree with `OutTensor` leaves, notes, keys to the state dict) of a model directory."""
    description = read_description(directory)
    if not description.kind.startswith("emotion2vec"):
        raise UserError(f"{directory} holds a {description.kind}, not an emotion2vec model")
    params = flatten(read_params(directory))
    carried = read_carried(directory)
    if TREE_LEAF not in carried:
        return upstream_tree(description, params), {"format": _NO_SOURCE}, ("model",)
    kept: dict[str, OutTensor] = {}

    def weight(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> OutTensor:
        match = emotion2vec.TABLE.match(emotion2vec.plain_name(name))
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
    state_path = notes.get("state_path")
    if not isinstance(state_path, list) or not isinstance(notes.get("format"), str):
        raise UserError(f"{directory} keeps a damaged copy of its source's layout; convert again")
    return tree, notes, tuple(state_path)


def upstream_tree(description: ModelDescription, params: Mapping[str, np.ndarray]) -> Any:
    """A tree as fairseq (or, with a head, FunASR) would save these parameters."""
    is_classifier = description.kind == "emotion2vec_classifier"
    prefix = emotion2vec.PREFIX if is_classifier else ""
    state: OrderedDict[str, OutTensor] = OrderedDict()
    for path, leaf in params.items():
        for name, shape, match in emotion2vec.TABLE.sources(path, leaf.shape):
            part = match.within(leaf, shape)
            if part is not None:
                full = name if name.startswith("proj.") else prefix + name
                state[full] = from_disk(part, part.dtype)
    tree: dict[str, Any] = {"args": None, "cfg": _upstream_cfg(description), "model": state}
    if description.labels:
        tree["labels"] = description.extra.get("label_tokens") or description.labels
    return tree


def _upstream_cfg(description: ModelDescription) -> dict[str, Any]:
    try:
        model = dataclasses.asdict(Emotion2VecConfig.from_dict(description.model))
        is_classifier = description.kind == "emotion2vec_classifier"
        return upstream_config(model, description.extra.get("pretraining"), is_classifier)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the model's config.json is damaged ({error}); convert it again"
        ) from error


def _metadata(directory: Path, notes: Mapping[str, Any]) -> dict[str, str]:
    """What a safetensors file says about itself: the source's notes, our config and labels."""
    description = read_description(directory)
    stored = notes.get("metadata")
    metadata = {str(k): str(v) for k, v in stored.items()} if isinstance(stored, dict) else {}
    metadata["cfg"] = json.dumps(_upstream_cfg(description))
    if description.labels:
        tokens = description.extra.get("label_tokens") or description.labels
        metadata["labels"] = json.dumps(tokens, ensure_ascii=False)
    return metadata


def from_disk(part: np.ndarray, dtype: np.dtype) -> OutTensor:
    """A tensor read from a mapped file; the pages are given back once it was read."""

    def make() -> np.ndarray:
        values = np.array(part, dtype, order="C")
        owner: Any = part
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            owner.madvise(mmap.MADV_DONTNEED)
        return values

    return OutTensor(part.shape, np.dtype(dtype), make)


def write_flat(path: Path, tensors: dict[str, OutTensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, one tensor in memory at a time, whole or not at all."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype.name not in SAFETENSORS_NAMES:
            raise UserError(f"{name} is {tensor.dtype.name}, which safetensors can't hold")
        header[name] = {
            "dtype": SAFETENSORS_NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                values = np.asarray(tensor.make(), order="C")
                file.write(values.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
