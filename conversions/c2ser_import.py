"""Turns C2SER's checkpoint, its Qwen2 folder and its Emotion2Vec-S into one model directory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from c2ser_jax.errors import UserError
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.training.checkpoint import ModelDescription
from conversions import emotion2vec_import
from conversions.c2ser_config import (
    CONFIG,
    LABELS,
    PROMPTS,
    C2serSource,
    language_model_config,
    model_config,
    prompts,
    read_source,
)
from conversions.c2ser_merge import MergedPlan
from conversions.c2ser_names import (
    ACOUSTIC,
    acoustic_path,
    is_unused,
    prefix_of,
    table,
    target_shapes,
)
from conversions.c2ser_sources import (
    Tensors,
    alias_references,
    folder_tree,
    missing_weights,
    state_of,
    weights_of,
)
from conversions.connector_names import SPEECH_TOKENS
from conversions.emotion2vec_import import Options, Prepared
from conversions.engine import Plan, Shapes, Table, plan
from conversions.model_folder import (
    INDEX,
    MAX_FILE_BYTES,
    fingerprint,
    open_folder,
    read_json_file,
    weight_files,
)
from conversions.qwen2_import import TOKENIZER_FILES
from conversions.reader import Checkpoint, open_checkpoint
from conversions.source_tree import Carrier
from conversions.tokenizer_files import check_tokenizer_files

FAMILY = KIND = "c2ser"


@dataclasses.dataclass(frozen=True)
class _Sources:
    """The opened files: checkpoint with its state dict and config.yaml, folder, Emotion2Vec-S."""

    checkpoint: Checkpoint
    state: Tensors
    config: C2serSource
    folder: Checkpoint
    document: Mapping[str, Any]
    acoustic: Checkpoint
    prepared: Prepared


def prepare(checkpoint: Checkpoint, options: Options) -> Prepared:
    """Maps the three sources onto the model; raises `UserError` for anything that doesn't fit.

    The checkpoint's own language model wins over the folder's weights, which fill what it lacks.
    Language-model weights that are stored in bfloat16 stay so; all else becomes float32.
    """
    found = _open(checkpoint, options)
    path, folder, prefix = checkpoint.path, found.folder, prefix_of(found.state)
    llm = language_model_config(
        path, found.state, prefix, found.config, folder.path, found.document
    )  # fmt: skip
    adapted, tied = llm.lora.targets if llm.lora else (), llm.tied_head
    ends = _ends(found)
    files = folder.tree["files"]
    check_tokenizer_files(files, llm.vocabulary, ends, str(folder.path))
    rules = table(prefix, adapted)
    weights, aliases = weights_of(found.state, prefix, tied)
    cfg = model_config(path, weights, found.config, _acoustic_config(found), llm)
    filling = missing_weights(rules, weights, folder.tree["state_dict"], tied)
    weights |= filling
    shapes, dtype = target_shapes(cfg), _param_dtype(rules, weights)
    cfg = dataclasses.replace(cfg, llm=dataclasses.replace(llm, param_dtype=dtype))
    made = _plan(cfg, shapes, rules, weights, found)
    references = alias_references(aliases, weights, prefix, tied)
    kept, more, left_out = folder_tree(folder, rules, weights)
    references |= more | _references(made)
    tree = {
        "checkpoint": checkpoint.tree,
        "files": _files(found),
        "llm": kept,
        "emotion2vec": found.acoustic.tree,
    }
    notes = _notes(found, filling, left_out, cfg.acoustic_tokens)
    is_merged = options.merge and llm.lora is not None
    if is_merged:
        carried = {n: t for n, t in found.state.items() if is_unused(n) or n == SPEECH_TOKENS}
        plain = {name: data for name, data in kept["files"].items() if not name.endswith(INDEX)}
        tree |= {"checkpoint": carried, "llm": {"files": plain, "state_dict": {}}}
        made = MergedPlan(made, llm.lora.scale if llm.lora else 0.0)
        cfg = dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, lora=None))
        notes["adapters"] = "merged into the kernels"
    layout = {
        "family": FAMILY,
        "format": checkpoint.format,
        "metadata": checkpoint.notes,
        "prefix": prefix,
        "adapted": list(adapted),
        "merged": is_merged,
        "names": {"checkpoint": path.name, "emotion2vec": found.acoustic.path.name},
        "llm": folder.notes,
        "emotion2vec": {"format": found.acoustic.format, "metadata": found.acoustic.notes},
    }
    carrier = Carrier(tree, references, layout, anywhere=True)
    description = ModelDescription(
        kind=KIND,
        model=dataclasses.asdict(cfg),
        labels=list(LABELS),
        extra={"languages": ["en", "zh"], "prompts": prompts(path), **_trained_end(found)},
        origin=_origin(found, notes, len(carrier.tensors)),
        licence=options.licence,
    )
    tokenizer = {name: files[name] for name in TOKENIZER_FILES if name in files}
    return Prepared(description, made, carrier, tokenizer)


def _open(checkpoint: Checkpoint, options: Options) -> _Sources:
    if options.llm is None or options.acoustic is None:
        lacking = "--llm QWEN2_DIR" if options.llm is None else "--emotion2vec E2VS.pt"
        raise UserError(f"{FAMILY} needs {lacking}: the checkpoint alone does not hold it")
    if not options.llm.is_dir():
        raise UserError(f"{options.llm} is not a folder; give the Qwen2's Hugging Face folder")
    state = state_of(checkpoint)
    config = read_source(checkpoint.path, options.config)
    folder = open_folder(options.llm, needs_weights=False)
    document = read_json_file(folder, "config.json")
    if document is None:
        raise UserError(f"{options.llm} has no config.json; copy or download it")
    acoustic = open_checkpoint(options.acoustic)
    prepared = emotion2vec_import.prepare(acoustic, Options(normalize=options.normalize))
    told = prepared.description.origin["notes"]["normalize_waveform"]
    if told.startswith("assumed"):  # C2SER's own extraction feeds the raw waveform
        prepared = emotion2vec_import.prepare(acoustic, Options(normalize=False))
    return _Sources(checkpoint, state, config, folder, document, acoustic, prepared)


def _acoustic_config(found: _Sources) -> Emotion2VecConfig:
    return Emotion2VecConfig.from_dict(found.prepared.description.model)


def _ends(found: _Sources) -> tuple[int, ...]:
    """Ids that end an answer: the one the checkpoint was trained with, then the folder's own."""
    told = found.document.get("eos_token_id")
    own = told if isinstance(told, list) else [told]
    trained = _trained_end(found).get("eos", [])
    return tuple(dict.fromkeys(end for end in (*trained, *own) if type(end) is int))


def _trained_end(found: _Sources) -> dict[str, list[int]]:
    """What a model directory says of the ending id; nothing where the checkpoint doesn't tell.

    The folder's own may be that of its chats, which the answers need not end with.
    """
    trained = found.config.section("dataset_conf").get("eod_id")
    return {"eos": [trained]} if type(trained) is int else {}


def _param_dtype(rules: Table, weights: Tensors) -> str:
    """What the language model's frozen weights are stored in: bfloat16 where all of them are."""
    stored = set()
    for name, tensor in weights.items():
        match = rules.match(name)
        if match is not None and _is_frozen(match.target):
            stored.add(tensor.dtype.name)
    return "bfloat16" if stored == {"bfloat16"} else "float32"


def _is_frozen(path: str) -> bool:
    return path.startswith("llm/") and "/lora_" not in path


def _plan(
    cfg: C2serConfig, shapes: Shapes, rules: Table, weights: Tensors, found: _Sources
) -> Plan:
    """The plan of the whole model; the acoustic encoder's part of it was made beforehand."""
    heard = found.prepared.plan
    keeps_half = lambda path: cfg.llm.param_dtype == "bfloat16" and _is_frozen(path)  # noqa: E731
    made = plan(
        rules,
        weights,
        {path: shape for path, shape in shapes.items() if not path.startswith("acoustic/")},
        source=f"{found.checkpoint.path} with {found.folder.path}",
        hint="Give the config.yaml and the Qwen2 it was trained with (--config, --llm)",
        keeps_half=keeps_half,
    )
    acoustic = {
        acoustic_path(path): parts
        for path, parts in heard.parts.items()
        if path.startswith("encoder/")
    }
    return Plan(shapes, acoustic | made.parts, keeps_half)


def _references(made: Plan) -> dict[int, str]:
    """{id: reference} of all tensors that fill a parameter."""
    return {
        id(tensor): (ACOUSTIC if path.startswith("acoustic/") else "") + name
        for path, parts in made.parts.items()
        for _, name, tensor in parts
    }


def _files(found: _Sources) -> dict[str, bytes]:
    """config.yaml and the list of prompts beside the checkpoint, for export."""
    places = {CONFIG: found.config.place, PROMPTS: found.checkpoint.path.parent / PROMPTS}
    return {
        name: place.read_bytes()
        for name, place in places.items()
        if place.is_file() and place.stat().st_size <= MAX_FILE_BYTES
    }


def _notes(found: _Sources, filling: Tensors, left_out: int, tokens: str) -> dict[str, str]:
    first = "the first frames, which the released model was trained on"
    notes = {
        "acoustic tokens": first if tokens == "published" else "the encoder's extra tokens",
        "language model": "the checkpoint's own",
        "prompts": PROMPTS if PROMPTS in _files(found) else "the published ones",
    }
    if filling:
        notes["language model"] = f"{len(filling)} tensors of {found.folder.path.name}"
    if left_out:
        notes["not kept"] = (
            f"{left_out} tensors of {found.folder.path.name} that differ from the checkpoint's own"
        )
    return notes


def _origin(found: _Sources, notes: dict[str, str], carried: int) -> dict[str, Any]:
    path, files = found.checkpoint.path, weight_files(found.folder)
    size, digest = fingerprint([path])
    folder: dict[str, Any] = {"folder": found.folder.path.name}
    if files:
        folder["bytes"], folder["sha256"] = fingerprint(files)
    return {
        "family": FAMILY,
        "file": path.name,
        "bytes": size,
        "sha256": digest,
        "format": found.checkpoint.format,
        "config": found.config.place.name,
        "notes": notes,
        "carried tensors": carried,
        "language model": folder,
        "acoustic encoder": found.prepared.description.origin,
    }
