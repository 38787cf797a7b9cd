"""Sizes of a C2SER checkpoint: from its config.yaml, the Qwen2 folder's config.json, and shapes.

Upstream's config.yaml says nothing of the connector: `connector_conf` and `ssl_dim` may be added to
it where the connector is another than the published one. What upstream has no word for at all
stands in its section `c2ser_jax`, which our own exports have.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2 import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from conversions import qwen2
from conversions.c2ser_names import ADAPTED
from conversions.emotion2vec_config import read_yaml
from conversions.emotion2vec_fields import coerce
from conversions.tensors import LazyTensor
from conversions.whisper import encoder_config, shape_facts
from conversions.whisper_names import WENET, naming_of

CONFIG, PROMPTS = "config.yaml", "prompt_config.yaml"
LABELS = ("angry", "happy", "fearful", "surprised", "neutral", "sad", "disgusted")
"""The emotions that the released model was trained to name."""

PUBLISHED_PROMPTS = {
    "explicit": "Please describe the speaking style, content, and the speaker's emotional state of "
    "this speech.",
    "implicit": "Please consider the speaking style, content, and directly provide the speaker's "
    "emotion in this speech.",
}
TASKS = {
    "explicit": "<EMOTION> <EXP_DESCRIPTION>",
    "implicit": "<EMOTION> <IMP_DESCRIPTION>",
}
OWN_FIELDS = {"acoustic_tokens", "acoustic_token_count", "inputs"}
_HEADS, _SSL_WIDTH = 4, 768  # hard-coded upstream
_FEATURES = {"n_fft": 400, "hop_length": 160, "padding": 0}  # what log_mel computes
_DROPOUTS = {
    "dropout": "dropout_rate",
    "activation_dropout": "dropout_rate",
    "position_dropout": "positional_dropout_rate",
}
_LANGUAGE_MODEL = {  # field: (config.json's name, tensor, axis)
    "width": ("hidden_size", "model.embed_tokens.weight", 1),
    "vocabulary": ("vocab_size", "model.embed_tokens.weight", 0),
    "mlp_width": ("intermediate_size", "model.layers.0.mlp.up_proj.weight", 0),
}


@dataclasses.dataclass(frozen=True)
class C2serSource:
    """config.yaml as read: where it lies, and its sections."""

    place: Path
    document: Mapping[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        """A table of the file, empty where it is missing. Errors: UserError for another value."""
        found = self.document.get(name)
        if found is not None and not isinstance(found, dict):
            raise UserError(f"{self.place}: {name} is {found!r:.40}, wanted a table")
        return {str(key): value for key, value in (found or {}).items()}

    def number(self, name: str, kind: type, default: Any = None) -> Any:
        """A number of the file. Errors: UserError where it is missing and has no default."""
        value = self.document.get(name, default)
        if value is None:
            raise UserError(f"{self.place} lacks {name}; give the checkpoint's own {CONFIG}")
        return coerce(value, kind, name, str(self.place))


def read_source(checkpoint: Path, named: Path | None) -> C2serSource:
    """The config named, or config.yaml beside the checkpoint; raises `UserError` without one."""
    place = named or checkpoint.parent / CONFIG
    if not place.is_file():
        raise UserError(
            f"{place} is missing: the scale of the adapters and the numbers of heads stand in no "
            f"tensor; put upstream's {CONFIG} beside the checkpoint or name it with --config"
        )
    document = read_yaml(place)
    if not isinstance(document, dict) or not isinstance(document.get("encoder_conf"), dict):
        raise UserError(f"{place} describes no C2SER: it has no encoder_conf; give upstream's file")
    source = C2serSource(place, document)
    features = source.section("dataset_conf").get("log_mel_spectrogram_conf") or {}
    for name, wanted in _FEATURES.items():
        found = features.get(name, wanted) if isinstance(features, dict) else features
        if found != wanted:
            raise UserError(f"{place}: {name} is {found!r:.40}, only {wanted} can be computed")
    return source


def model_config(
    path: Path, tensors: Mapping[str, LazyTensor], source: C2serSource, acoustic: Emotion2VecConfig,
    llm: Qwen2Config,
) -> C2serConfig:  # fmt: skip
    """The whole model's config; raises `UserError` where the parts don't fit each other."""
    encoder = _encoder(path, tensors, source)
    connector = _connector(path, tensors, source)
    ssl_width = source.number("ssl_dim", int, _SSL_WIDTH)
    if acoustic.width > connector.encoder_width:
        raise UserError(
            f"the Emotion2Vec-S is {acoustic.width} wide, more than the encoder of {path.name} "
            f"({connector.encoder_width}): its vectors can be padded but not cut; give the one "
            "that this checkpoint was trained with (--emotion2vec)"
        )
    if acoustic.width != ssl_width:
        raise UserError(
            f"the Emotion2Vec-S is {acoustic.width} wide, {path.name} was trained with vectors of "
            f"{ssl_width}: give the one that it was trained with (--emotion2vec), or set ssl_dim "
            f"in {source.place.name}"
        )
    own = source.section("c2ser_jax")
    if unknown := sorted(own.keys() - OWN_FIELDS):
        raise UserError(f"{source.place}: c2ser_jax has no field {unknown[0]!r:.40}; remove it")
    count = coerce(own.get("acoustic_token_count", 10), int, "acoustic_token_count", CONFIG)
    return C2serConfig(
        acoustic=acoustic, encoder=encoder, connector=connector, llm=llm,
        acoustic_tokens=own.get("acoustic_tokens", "published"), acoustic_token_count=count,
        inputs=own.get("inputs", "both"),
    )  # fmt: skip


def language_model_config(
    path: Path, tensors: Mapping[str, LazyTensor], prefix: str, source: C2serSource, folder: Path,
    document: Mapping[str, Any],
) -> Qwen2Config:  # fmt: skip
    """The language model of `folder`'s config.json with the checkpoint's adapters.

    Raises:
      UserError: the checkpoint's language model has other sizes, or its adapters another rank than
        config.yaml says.
    """
    lora = _lora(path, tensors, prefix, source)
    cfg = Qwen2Config.from_huggingface(document, lora=lora)
    for field, (name, tensor, axis) in _LANGUAGE_MODEL.items():
        found = tensors.get(prefix + tensor)
        shape = (0, 0) if found is None or len(found.shape) != 2 else found.shape
        if shape[axis] not in (0, getattr(cfg, field)):
            raise _other_model(path, field, shape[axis], folder, name, getattr(cfg, field))
    layer = re.compile(re.escape(prefix) + r"model\.layers\.([0-9]{1,4})\..*")
    depth = len({found[1] for name in tensors if (found := layer.fullmatch(name))})
    if depth not in (0, cfg.depth):
        raise _other_model(path, "depth", depth, folder, "num_hidden_layers", cfg.depth)
    return cfg


def _other_model(path, field, found, folder, name, wanted) -> UserError:
    return UserError(
        f"{path}'s language model has {field} {found} where {folder / 'config.json'} says {name} "
        f"{wanted}; give the Qwen2 that this checkpoint was trained with (--llm)"
    )


def prompts(checkpoint: Path) -> dict[str, dict[str, str]]:
    """{mode: {"en": prompt}} of prompt_config.yaml beside the checkpoint, else the published."""
    place = checkpoint.parent / PROMPTS
    document = read_yaml(place) if place.is_file() else None
    found = dict(PUBLISHED_PROMPTS)
    tasks = document if isinstance(document, dict) else {}
    for mode, task in TASKS.items():
        lines = tasks.get(task)
        if isinstance(lines, list) and lines and isinstance(lines[0], str):
            found[mode] = lines[0]
    return {mode: {"en": text} for mode, text in found.items()}


def _encoder(
    path: Path, tensors: Mapping[str, LazyTensor], source: C2serSource
) -> WhisperEncoderConfig:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    if naming_of(own) is not WENET:
        raise UserError(
            f"{path} is not a C2SER checkpoint: {WENET.sign} is missing among its {len(tensors)} "
            "tensors"
        )
    conf = source.section("encoder_conf")
    fields = {"heads": "attention_heads", "width": "output_size", "depth": "num_blocks",
              "mlp_width": "linear_units"}  # fmt: skip
    told = {ours: conf[theirs] for ours, theirs in fields.items() if theirs in conf}
    cfg = encoder_config(path, shape_facts(own, WENET), str(source.place), told)
    drops = {
        ours: coerce(conf[theirs], float, theirs, str(source.place))
        for ours, theirs in _DROPOUTS.items()
        if theirs in conf
    }
    return dataclasses.replace(cfg, **drops)


def _connector(
    path: Path, tensors: Mapping[str, LazyTensor], source: C2serSource
) -> ConnectorConfig:
    transformer = "speech_transformer."
    layer = re.compile(re.escape(transformer) + r"encoders\.([0-9]{1,4})\.norm1\.weight")
    facts: dict[str, Any] = {
        "encoder_width": _size(path, tensors, transformer + "embed.out.0.weight", 1),
        "width": _size(path, tensors, transformer + "embed.out.0.weight", 0),
        "depth": sum(layer.fullmatch(name) is not None for name in tensors),
        "mlp_width": _size(path, tensors, transformer + "encoders.0.feed_forward.w_1.weight", 0),
        "output_width": _size(path, tensors, "speech_llama_proj.weight", 0),
        "positions": _size(path, tensors, transformer + "embed.pos_enc.pe", 1),
    }
    conf, where = source.section("connector_conf"), str(source.place)
    for ours, theirs in {"mlp_width": "linear_units", "depth": "num_blocks"}.items():
        told = coerce(conf.get(theirs, facts[ours]), int, theirs, where)
        if told != facts[ours]:
            raise UserError(
                f"{path} has a connector of {ours} {facts[ours]} where {where} says {theirs} "
                f"{told}; give the config this checkpoint was trained with (--config)"
            )
    heads = coerce(conf.get("attention_heads", _HEADS), int, "attention_heads", where)
    return ConnectorConfig(heads=heads, **facts)


def _size(path: Path, tensors: Mapping[str, LazyTensor], name: str, axis: int) -> int:
    shape = tensors[name].shape if name in tensors else ()
    if len(shape) < 2 or not 0 < shape[axis] <= 1 << 20:
        raise UserError(f"{path} is not a C2SER checkpoint: {name} is missing or has no such shape")
    return shape[axis]


def _lora(
    path: Path, tensors: Mapping[str, LazyTensor], prefix: str, source: C2serSource
) -> LoraConfig | None:
    facts = qwen2.adapter_facts(tensors, prefix) if prefix == ADAPTED else None
    has_adapters = coerce(
        source.document.get("use_lora", facts is not None), bool, "use_lora", str(source.place)
    )
    if has_adapters != (facts is not None):
        raise UserError(
            f"{path} has {'no' if facts is None else 'its'} adapters where {source.place} says "
            f"use_lora {str(has_adapters).lower()}; give the config this checkpoint was trained "
            "with (--config)"
        )
    if facts is None:
        return None
    rank, adapted = facts
    told = source.number("lora_rank", int)
    if told != rank:
        raise UserError(
            f"{path} has adapters of rank {rank} where {source.place} says lora_rank {told}; give "
            "the config this checkpoint was trained with (--config)"
        )
    return LoraConfig(
        rank=rank, alpha=source.number("lora_alpha", float),
        dropout=source.number("lora_dropout", float, 0.0), targets=adapted,
    )  # fmt: skip
