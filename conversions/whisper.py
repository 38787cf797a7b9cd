"""The Whisper family: a published checkpoint in any naming becomes an encoder's model directory."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2ser_jax.errors import UserError
from c2ser_jax.models.whisper import SIZES, WhisperEncoder, WhisperEncoderConfig
from c2ser_jax.training.checkpoint import ModelDescription, flatten
from conversions.emotion2vec_config import read_yaml
from conversions.emotion2vec_import import Options, Prepared
from conversions.engine import plan
from conversions.model_folder import FORMAT, fingerprint, read_json_file, weight_files
from conversions.reader import Checkpoint, state_dict_path
from conversions.source_tree import Carrier
from conversions.tensors import LazyTensor
from conversions.whisper_names import CARRIED, TABLES, Naming, naming_of

FAMILY, KIND = "whisper", "whisper_encoder"
PREFIX = "model."
"""Before every name in Hugging Face's checkpoints with a head."""

_HUGGING_FACE_FIELDS = {
    "mel_bins": "num_mel_bins",
    "width": "d_model",
    "depth": "encoder_layers",
    "heads": "encoder_attention_heads",
    "mlp_width": "encoder_ffn_dim",
    "positions": "max_source_positions",
}
_OPENAI_FIELDS = {
    "mel_bins": "n_mels",
    "width": "n_audio_state",
    "depth": "n_audio_layer",
    "heads": "n_audio_head",
    "positions": "n_audio_ctx",
}


def prepare(checkpoint: Checkpoint, options: Options) -> Prepared:
    """Maps a checkpoint onto the encoder; raises `UserError` for anything that doesn't fit.

    The number of heads, which no tensor's shape tells, comes from config.json (Hugging Face), the
    file's own `dims` (OpenAI), or a wenet config: the one named, or config.yaml or train.yaml
    beside the file; without any, from the published sizes.
    """
    path = checkpoint.path
    state_path, state = whisper_state(checkpoint)
    tensors = {plain_name(str(k)): v for k, v in state.items() if isinstance(v, LazyTensor)}
    naming = naming_of(tensors)
    if naming is None or len(tensors) != len(state):
        raise UserError(
            f"{path} is not a Whisper checkpoint: none of the three namings (Hugging Face, OpenAI, "
            f"wenet) fits its {len(state)} entries"
        )
    weights = {name: tensor for name, tensor in tensors.items() if not CARRIED.fullmatch(name)}
    facts = shape_facts(weights, naming)
    place, told = _told(checkpoint, options.config)
    cfg = encoder_config(path, facts, place, told)
    made = plan(
        TABLES[naming.title],
        weights,
        target_shapes(cfg),
        source=str(path),
        hint="Give the config this checkpoint was trained with (--config)",
    )
    files = weight_files(checkpoint)
    size, digest = fingerprint(files)
    if sum(tensor.nbytes for tensor in tensors.values()) > 4 * size + (1 << 20):
        raise UserError(f"{path} would unfold far beyond its size; save it with cloned tensors")
    names = {id(value): str(name) for name, value in state.items()}
    is_weight = {id(tensor): names[id(tensor)] for tensor in weights.values()}
    layout = {"family": FAMILY, "format": checkpoint.format, "state_path": list(state_path)}
    carrier = Carrier(checkpoint.tree, is_weight, layout | {"metadata": checkpoint.notes})
    description = ModelDescription(
        kind=KIND,
        model=dataclasses.asdict(cfg),
        origin={
            "family": FAMILY,
            "file": path.name,
            "bytes": size,
            "sha256": digest,
            "format": checkpoint.format,
            "layout": naming.title,
            "config": place.rsplit("/", 1)[-1] if place else "none found",
            "notes": {} if "heads" in told else {"heads": "those of the published size"},
            "carried tensors": len(carrier.tensors),
        },
        licence=options.licence,
    )
    return Prepared(description, made, carrier)


def plain_name(name: str) -> str:
    """A source name without the prefix of checkpoints with a head."""
    return name.removeprefix(PREFIX)


def whisper_state(checkpoint: Checkpoint) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(keys from the top, state dict). Errors: UserError when there is none."""
    state_path, state = state_dict_path(checkpoint.tree), checkpoint.tree
    for key in state_path:
        state = state[key]
    if not isinstance(state, dict) or not any(isinstance(v, LazyTensor) for v in state.values()):
        raise UserError(f"{checkpoint.path} holds no state dict (a table of named tensors)")
    return state_path, state


def shape_facts(tensors: Mapping[str, LazyTensor], naming: Naming) -> dict[str, int]:
    """The sizes that the shapes of an encoder's tensors tell, under its naming."""
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    pattern = re.escape(naming.fc1).replace(r"\{layer\}", "[0-9]{1,4}")
    layers = [name for name in shape if re.fullmatch(pattern, name, re.ASCII)]
    places = {
        "mel_bins": (naming.conv1, 1, 3),
        "width": (naming.conv1, 0, 3),
        "mlp_width": (naming.fc1.format(layer=0), 0, 2),
        "positions": (naming.sign, -2, None),
    }
    facts = {"depth": len(layers)}
    for key, (name, axis, axes) in places.items():
        found = shape.get(name, ())
        if len(found) >= 2 and axes in (None, len(found)) and 0 < found[axis] <= 1 << 20:
            facts[key] = found[axis]
    return facts


def encoder_config(
    path: Path, facts: Mapping[str, int], place: str | None, told: Mapping[str, Any]
) -> WhisperEncoderConfig:
    """The config that shapes and config agree on; raises `UserError` where they don't."""
    values: dict[str, Any] = dict(facts)
    for name, value in told.items():
        if type(value) is not int or value != facts.get(name, value):
            raise UserError(
                f"{path} has {name} {facts.get(name)} where {place} says {value!r:.40}; give the "
                "config this checkpoint was trained with (--config)"
            )
        values[name] = value
    if "heads" not in values:
        known = {(size["width"], size["depth"]): size["heads"] for size in SIZES.values()}
        heads = known.get((facts.get("width", 0), facts["depth"]))
        if heads is None:
            raise UserError(
                f"{path} doesn't tell the number of its attention heads and has no published "
                "Whisper's size; name its config with --config (encoder_conf: attention_heads)"
            )
        values["heads"] = heads
    return WhisperEncoderConfig(**values)


@functools.lru_cache(maxsize=8)
def target_shapes(cfg: WhisperEncoderConfig) -> dict[str, tuple[int, ...]]:
    """{"encoder/…": shape} of the encoder's parameters, from tracing it with shapes alone."""

    def create() -> Any:
        features, lengths = jnp.zeros((1, 2, cfg.mel_bins)), jnp.full((1,), 2, jnp.int32)
        return {"encoder": WhisperEncoder(cfg).init(jax.random.key(0), features, lengths)["params"]}

    tree = nn.meta.unbox(jax.eval_shape(create))
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


def _told(checkpoint: Checkpoint, named: Path | None) -> tuple[str | None, dict[str, Any]]:
    """(where from, sizes) that a config says; (None, {}) without one."""
    tree = checkpoint.tree
    if named is not None:
        return str(named), _config_sizes(named, read_yaml(named))
    if checkpoint.format == FORMAT:
        place, document = checkpoint.path / "config.json", read_json_file(checkpoint, "config.json")
        if document is None:
            raise UserError(f"{checkpoint.path} has no config.json; copy or download it")
        return str(place), _config_sizes(place, document)
    if isinstance(tree, dict) and isinstance(tree.get("dims"), dict):
        dims = {str(key): value for key, value in tree["dims"].items()}
        return "its own dims", _sizes(dims, _OPENAI_FIELDS)
    for beside in ("config.yaml", "train.yaml", "config.json"):
        place = checkpoint.path.parent / beside
        if place.is_file() and (told := _config_sizes(place, read_yaml(place), False)):
            return str(place), told
    return None, {}


def _config_sizes(place: Path, document: Any, is_named: bool = True) -> dict[str, Any]:
    """Sizes in a Hugging Face or wenet config; another file is refused when it `is_named`."""
    if isinstance(document, dict) and document.get("model_type") == "whisper":
        if document.get("activation_function", "gelu") != "gelu":
            raise UserError(f"{place}: activation_function is not 'gelu'; only that can be read")
        return _sizes(document, _HUGGING_FACE_FIELDS)
    conf = document.get("encoder_conf") if isinstance(document, dict) else None
    if isinstance(conf, dict):
        return _sizes(conf, {"heads": "attention_heads", "width": "output_size"})
    if is_named:
        raise UserError(f"{place} describes no Whisper: it has neither encoder_conf nor model_type")
    return {}


def _sizes(source: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    return {ours: source[theirs] for ours, theirs in fields.items() if theirs in source}
