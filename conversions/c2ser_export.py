"""Writes a C2SER model directory back as its sources were, and compares it with them.

FOLDER/CHECKPOINT.pt, config.yaml, prompt_config.yaml · FOLDER/llm/ the Qwen2 folder ·
FOLDER/emotion2vec/CHECKPOINT.pt
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import flatten, read_carried, read_description, read_params
from conversions.c2ser_config import CONFIG
from conversions.c2ser_import import KIND
from conversions.c2ser_names import References
from conversions.c2ser_upstream import merged_tree, upstream_tree
from conversions.connector_names import SPEECH_TOKENS, join_speech_marks
from conversions.export import from_disk, write_flat
from conversions.model_folder import is_plain, open_folder, write_folder
from conversions.reader import Checkpoint, open_checkpoint
from conversions.source_tree import TREE_LEAF, read_tree
from conversions.torch_writer import OutTensor, write_torch
from conversions.verify import compare

SECTIONS = ("checkpoint", "files", "llm", "emotion2vec")


def export(directory: Path, folder: Path) -> str:
    """Writes `folder` whole or not at all; returns a sentence about it.

    Raises:
      UserError: `folder` exists, can't be written, or the directory holds something else.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; give another name or remove it first")
    if not folder.parent.is_dir():
        raise UserError(f"{folder.parent} is not a directory; create it first")
    tree, notes = source_layout(directory)
    names = notes["names"]
    temporary = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    try:
        temporary.mkdir()
        for name, data in tree["files"].items():
            (temporary / name).write_bytes(data)
        _write(temporary / names["checkpoint"], tree["checkpoint"], notes)
        write_folder(temporary / "llm", tree["llm"], notes["llm"])
        (temporary / "emotion2vec").mkdir()
        _write(
            temporary / "emotion2vec" / names["emotion2vec"],
            tree["emotion2vec"],
            notes["emotion2vec"],
        )
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    told = f"wrote {folder}: {names['checkpoint']}, llm and emotion2vec/{names['emotion2vec']}"
    if notes.get("merged"):
        told += "; the adapters stay merged, and config.yaml says use_lora: false"
    if not tree["llm"]["state_dict"]:
        told += "; llm holds no weights, the checkpoint has them"
    return told


def verify(checkpoint: Checkpoint, directory: Path, llm: Path | None, acoustic: Path | None) -> int:
    """Prints how many numbers differ from the sources'; returns 0 when none does, else 1.

    The Qwen2 folder and the Emotion2Vec-S are compared where they are given.
    """
    exported, notes = source_layout(directory)
    sources = {"checkpoint": checkpoint}
    if llm is not None:
        sources["llm"] = open_folder(llm, needs_weights=False)
    if acoustic is not None:
        sources["emotion2vec"] = open_checkpoint(acoustic)
    if notes.get("merged"):
        raise UserError(
            f"{directory} has merged adapters, which no source holds: convert it with --lora keep "
            "to compare the two"
        )
    differences = []
    for name, source in sources.items():
        counts, found = {"tensors": 0, "values": 0}, []
        compare(_kept(source.tree, exported[name], name), exported[name], (), counts, found)
        for line in found[:10]:
            print(f"differs: {line}")
        print(
            f"{name}: {counts['tensors']} tensors and {counts['values']} other values of "
            f"{source.path.name} compared, {len(found)} differ"
        )
        differences += found
    for name in set(SECTIONS) - {"files"} - sources.keys():
        print(f"{name}: not compared, since its source was not named")
    return 1 if differences else 0


def _kept(source: Any, exported: Any, section: str) -> Any:
    """A source's tree; of a folder only what the model keeps, where the checkpoint overrode it."""
    if section != "llm" or source["state_dict"].keys() == exported["state_dict"].keys():
        return source
    print(
        f"llm: {len(source['state_dict']) - len(exported['state_dict'])} tensors were not kept, "
        "since the checkpoint holds others in their place"
    )
    return {
        part: {name: value for name, value in source[part].items() if name in exported[part]}
        for part in ("files", "state_dict")
    }


def source_layout(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """({section: tree with `OutTensor` leaves}, notes) of a model directory.

    A model that was trained here, or whose adapters were merged, gets upstream's names.
    """
    description = read_description(directory)
    if description.kind != KIND:
        raise UserError(f"{directory} holds a {description.kind}, not a C2SER model")
    params, carried = flatten(read_params(directory)), read_carried(directory)
    if TREE_LEAF not in carried:
        return upstream_tree(directory, description, params)
    tree, notes = _stored_tree(directory, params, carried)
    if notes["merged"]:
        tree = merged_tree(description, params, tree)
    return tree, notes


def _stored_tree(
    directory: Path, params: Mapping[str, np.ndarray], carried: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    kept: dict[str, OutTensor] = {}
    weights: dict[tuple, OutTensor] = {}
    pending: list[tuple[str, np.dtype, tuple[int, ...]]] = []

    def weight(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> OutTensor:
        key = (name, dtype, shape)
        if key not in weights:  # the same parameter under two names is one stored part
            pending.append(key)
            weights[key] = OutTensor(shape, dtype, lambda: find(name, dtype, shape).make())
        return weights[key]

    def find(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> OutTensor:
        part = references.part(params, name, shape)
        if part is None:
            raise UserError(
                f"{directory} lacks the parameter that {name} {list(shape)} came from; its "
                "params.safetensors and carried.safetensors don't belong together"
            )
        return from_disk(part, dtype)

    def keep(name: str, array: np.ndarray) -> OutTensor:
        if name.endswith("/" + SPEECH_TOKENS):
            array = join_speech_marks(array, params["connector/speech_marks"])
        return kept.setdefault(name, from_disk(array, array.dtype))

    tree, notes = read_tree(carried, weight, keep, str(directory))
    if not _is_sound(tree, notes):
        raise UserError(f"{directory} keeps a damaged copy of its source's layout; convert again")
    references = References(notes["prefix"], notes["adapted"])
    for key in pending:  # whatever is missing shows before anything is written
        find(*key)
    return tree, notes


def _is_sound(tree: Any, notes: Mapping[str, Any]) -> bool:
    """Whether a stored layout has the form that `c2ser_import` gives it."""
    if not isinstance(tree, dict) or not all(isinstance(tree.get(s), dict) for s in SECTIONS):
        return False
    llm, names, acoustic = tree["llm"], notes.get("names"), notes.get("emotion2vec")
    tables = (llm.get("files"), llm.get("state_dict"), notes.get("metadata"), notes.get("llm"))
    if not isinstance(names, dict) or not isinstance(acoustic, dict):
        return False
    if not all(isinstance(table, dict) for table in (*tables, acoustic.get("metadata"))):
        return False
    files = [*tree["files"].items(), *llm["files"].items()]
    wanted = [names.get("checkpoint"), names.get("emotion2vec"), *(name for name, _ in files)]
    return (
        all(map(is_plain, wanted))
        and all(isinstance(data, bytes) for _, data in files)
        and isinstance(notes.get("prefix"), str)
        and isinstance(notes.get("adapted"), list)
        and isinstance(notes.get("merged"), bool)
        and (not notes["merged"] or CONFIG in tree["files"])
    )


def _write(file: Path, tree: Any, notes: Mapping[str, Any]) -> None:
    """One checkpoint in the container that it came in."""
    if notes.get("format") == "safetensors":
        metadata = {str(key): str(value) for key, value in notes["metadata"].items()}
        write_flat(file, {str(name): tensor for name, tensor in tree.items()}, metadata)
    else:
        write_torch(file, tree)
