"""Turns an opened emotion2vec checkpoint into what a model directory holds, checked beforehand."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import ModelDescription
from conversions.emotion2vec import (
    AUDIO,
    CARRIED,
    PREFIX,
    TABLE,
    parts_of,
    plain_name,
    target_shapes,
)
from conversions.emotion2vec_config import (
    MAX_CONFIG_BYTES,
    encoder_config,
    pretraining_config,
    read_yaml,
    source_config,
)
from conversions.engine import Plan, plan
from conversions.reader import Checkpoint, state_dict_path
from conversions.source_tree import Carrier
from conversions.tensors import LazyTensor

FAMILY = "emotion2vec"
UNUSED_PREFIX = "unuse"
_MAX_TOKENS_BYTES = 64 << 10


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line may say about a source beside its path."""

    config: Path | None = None
    tokens: Path | None = None
    normalize: bool | None = None
    licence: str | None = None
    lora: Path | None = None
    llm: Path | None = None
    acoustic: Path | None = None
    merge: bool = False


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A conversion that fits: what to write, nothing of it read yet but shapes."""

    description: ModelDescription
    plan: Plan
    carrier: Carrier
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def prepare(checkpoint: Checkpoint, options: Options) -> Prepared:
    """Maps a checkpoint onto the model; raises `UserError` for anything that doesn't fit.

    config.yaml and tokens.txt lying beside the source are read when not named.
    """
    path = checkpoint.path
    state_path, state = state_dict_of(checkpoint)
    tensors: dict[str, LazyTensor] = {}
    layout = "fairseq"
    for name, value in state.items():
        if not isinstance(value, LazyTensor):
            continue
        plain = plain_name(str(name))
        layout = "FunASR" if str(name).startswith(PREFIX) else layout
        if plain in tensors:
            raise UserError(f"{path} holds {plain!r:.90} twice, with and without {PREFIX!r}")
        tensors[plain] = value
    parts = parts_of(tensors)
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if not CARRIED.fullmatch(name)
        and not (parts.decoder is None and name.startswith(AUDIO + "decoder."))
    }
    if AUDIO + "project_features.2.weight" not in weights:
        raise UserError(
            f"{path} is not an emotion2vec checkpoint: {AUDIO}project_features.2.weight is missing "
            f"among its {len(tensors)} tensors"
        )
    place, document = _config_document(path, options.config)
    if checkpoint.format == "safetensors":
        own = {name: _own_note(checkpoint, name) for name in ("cfg", "labels")}
    else:
        own = checkpoint.tree if isinstance(checkpoint.tree, dict) else {}
    source = source_config(own, document, str(place or path))
    cfg, notes = encoder_config(source, parts.encoder, options.normalize)
    pretraining = None
    if parts.decoder is not None:
        pretraining, more = pretraining_config(source, parts.decoder)
        notes |= more
    labels, tokens = _labels(path, own.get("labels"), options.tokens, parts.classes)
    _check_depths(path, source.place, cfg, parts.encoder)
    made = plan(
        TABLE,
        weights,
        target_shapes(cfg, parts.classes, pretraining),
        source=str(path),
        hint="Give the config this checkpoint was trained with (--config)",
    )
    is_weight = {id(tensor): name for name, tensor in weights.items()}
    layout_notes = {"family": FAMILY, "format": checkpoint.format, "state_path": list(state_path)}
    carrier = Carrier(checkpoint.tree, is_weight, layout_notes | {"metadata": checkpoint.notes})
    _check_amount(path, weights, carrier)
    kind = "emotion2vec" if pretraining is None else "emotion2vec_pretraining"
    extra: dict[str, Any] = {}
    if pretraining is not None:
        extra["pretraining"] = dataclasses.asdict(pretraining)
    if tokens is not None:
        extra["label_tokens"] = tokens
        extra["unused_labels"] = [
            label
            for label, token in zip(labels or [], tokens, strict=True)
            if token.startswith(UNUSED_PREFIX)
        ]
    description = ModelDescription(
        kind="emotion2vec_classifier" if parts.classes is not None else kind,
        model=dataclasses.asdict(cfg),
        labels=labels,
        extra=extra,
        origin={
            "family": FAMILY,
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
            "format": checkpoint.format,
            "layout": layout,
            "model": "Emotion2Vec-S" if source.is_emotion2vec_s else "emotion2vec",
            "config": place.name if place else "its own cfg" if source.model else "none found",
            "notes": notes,
            "carried tensors": len(carrier.tensors),
            "known and dropped": "attributes of ordered dictionaries, devices, requires_grad",
        },
        licence=options.licence,
    )
    return Prepared(description, made, carrier)


def state_dict_of(checkpoint: Checkpoint) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(keys from the top, state dict); also finds the student of {"student", "teacher"}."""
    state_path, state = state_dict_path(checkpoint.tree), checkpoint.tree
    for key in state_path:
        state = state[key]
    if isinstance(state, dict) and isinstance(state.get("student"), dict):
        state_path, state = (*state_path, "student"), state["student"]
    if not isinstance(state, dict) or not any(isinstance(v, LazyTensor) for v in state.values()):
        raise UserError(f"{checkpoint.path} holds no state dict (a table of named tensors)")
    return state_path, state


def _config_document(path: Path, named: Path | None) -> tuple[Path | None, Any]:
    """(where from, parsed file) of --config or a config beside the source; None without one."""
    if named is not None:
        return named, read_yaml(named)
    for beside in (path.parent / "config.yaml", path.parent / "config.json"):
        if beside.is_file():
            document = read_yaml(beside)
            if not isinstance(document, dict) or isinstance(document.get("encoder_conf"), dict):
                continue  # not a config, or C2SER's, whose checkpoint may lie in the same folder
            if isinstance(document.get("model_conf"), dict):
                return beside, document
    return None, None


def _own_note(checkpoint: Checkpoint, name: str) -> Any:
    """A JSON value from a safetensors file's metadata (our exports say `cfg` and `labels`)."""
    try:
        text = checkpoint.notes.get(name, "null")
        return json.loads(text) if len(text) <= MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        return None


def _labels(
    path: Path, own: Any, named: Path | None, classes: int | None
) -> tuple[list[str] | None, list[str] | None]:
    """(English labels, the file's own tokens) of a classifier, (None, None) without a head.

    "生气/angry" gives the label "angry". An exported file of our own carries its `labels`.
    """
    if classes is None:
        return None, None
    place = named or next((p for p in _beside(path) if p.is_file()), None)
    if place is not None:
        tokens = _read_tokens(place)
    elif isinstance(own, list) and all(isinstance(label, str) for label in own):
        place, tokens = path, own
    else:
        raise UserError(
            f"{path} has a head of {classes} classes but no tokens.txt lies beside it; name the "
            "list of its labels with --tokens"
        )
    labels = [token.rsplit("/", 1)[-1].strip() or token for token in tokens]
    if len(tokens) != classes or len(set(labels)) != classes:
        raise UserError(
            f"{place} names {len(set(labels))} different labels, the head of {path} has {classes}; "
            "give the list that belongs to this checkpoint"
        )
    return labels, tokens


def _beside(path: Path) -> Iterator[Path]:
    yield path.parent / "tokens.txt"
    yield path.parent / "tokens.json"


def _read_tokens(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_TOKENS_BYTES:
            raise UserError(f"{path} is too large for a list of labels")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        tokens = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as a list of labels") from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path} is not a list of labels")
    return tokens


def _check_depths(path: Path, place: str, cfg: Any, facts: dict[str, Any]) -> None:
    """Refuses layer counts unlike the file's before a model of that depth is traced."""
    for name in ("depth", "prenet_depth", "position_depth"):
        if getattr(cfg, name) != (facts[name] or 0):
            raise UserError(
                f"{path} holds {facts[name] or 0} layers where {place} says {name} "
                f"{getattr(cfg, name)}; give the config this checkpoint was trained with (--config)"
            )


def _check_amount(path: Path, weights: dict[str, LazyTensor], carrier: Carrier) -> None:
    """Refuses a file whose overlapping tensors would grow far beyond its own size."""
    total = sum(tensor.nbytes for tensor in (*weights.values(), *carrier.tensors.values()))
    if total > 4 * path.stat().st_size + (1 << 20):
        raise UserError(f"{path} would unfold to {total} bytes; save it with cloned tensors first")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    with open(path, "rb") as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()
