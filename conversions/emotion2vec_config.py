"""Hyperparameters of an emotion2vec checkpoint: from its own `cfg`, a config.yaml, or its shapes.

Every value is untrusted: numbers are coerced ("1e-05" is what YAML makes of 1e-05) and bounded.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from c2ser_jax.errors import UserError
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec_config import Emotion2VecConfig
from conversions.conv_spec import parse_conv_spec
from conversions.emotion2vec_fields import (
    AUDIO_FIELDS,
    DECODER_FIELDS,
    MASKING_FIELDS,
    MODEL_FIELDS,
    PRETRAINING_FIELDS,
    UNSUPPORTED,
    coerce,
    typed,
)

MAX_CONFIG_BYTES = 64 << 10

_ALWAYS_FROM_SHAPES = ("alibi_scale", "learned_alibi_scale_per_layer", "conv_bias")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """The sections of a source's configuration, and where they were found."""

    model: Mapping[str, Any]
    audio: Mapping[str, Any]
    task: Mapping[str, Any]
    place: str

    @property
    def is_emotion2vec_s(self) -> bool:
        """True for C2SER's own model class, the only one with a `semi_loss`."""
        return "semi_loss" in self.model


def source_config(tree: Any, document: Any, where: str) -> SourceConfig:
    """Finds the model section: in `document` (a parsed config.yaml), else in `tree["cfg"]`."""
    if document is not None:
        for key in ("model_conf", "model"):
            if isinstance(document, dict) and isinstance(document.get(key), dict):
                return _sections(document[key], document, where)
        raise UserError(f"{where} has no model_conf (or model) section; give the model's own file")
    cfg = tree.get("cfg") if isinstance(tree, dict) else None
    model = _table(cfg, "model")
    if inner := _table(_table(model, "d2v_args"), "model"):
        model = inner
    return _sections(model, cfg if isinstance(cfg, dict) else {}, f"{where}'s own cfg")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without merge keys, whose nesting multiplies."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuses `<<:`; everything else is as it stands."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merge keys are not supported")
        super().flatten_mapping(node)


def read_yaml(path: Path) -> Any:
    """A small YAML file as plain values; raises `UserError` when it is not one."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_CONFIG_BYTES:
            raise UserError(f"{path} is larger than {MAX_CONFIG_BYTES >> 10} KiB; no config is")
        return yaml.load(data.decode("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as YAML; give the model's config file") from error


def encoder_config(
    source: SourceConfig, facts: Mapping[str, Any], normalize: bool | None
) -> tuple[Emotion2VecConfig, dict[str, str]]:
    """(config, notes on what was assumed). `facts` come from the tensors' shapes.

    The source's own values win over facts (a disagreement shows as wrong shapes later); what
    neither tells is the family's default and noted. `normalize` overrides the source's rule.
    """
    for section, key, wanted in UNSUPPORTED:
        value = getattr(source, section).get(key, wanted)
        if value != wanted:
            raise UserError(f"{source.place}: {key} is {value!r:.40}, only {wanted!r} can be read")
    values: dict[str, Any] = typed(source.model, MODEL_FIELDS, source.place)
    values |= typed(source.audio, AUDIO_FIELDS, source.place)
    notes: dict[str, str] = {}
    spec = source.audio.get("feature_encoder_spec")
    if spec is not None:
        values["conv_layers"] = parse_conv_spec(spec, source.place)
    inferred = [name for name, value in facts.items() if name not in values and value is not None]
    values |= {name: facts[name] for name in inferred}
    if told := sorted(set(inferred) - set(_ALWAYS_FROM_SHAPES)):
        notes["from shapes"] = ", ".join(told)
    if "heads" not in values:
        raise UserError(
            "the number of attention heads stands neither in the file nor in its shapes; "
            "give the model's config with --config"
        )
    if "conv_layers" not in values:
        raise UserError("the convolutions' strides stand nowhere; give the config with --config")
    if "norm_epsilon" not in values:
        notes["assumed"] = "norm_epsilon 1e-5 (stock fairseq's default is 1e-6)"
    elif not 0.0 < values["norm_epsilon"] < 1.0:
        raise UserError(f"{source.place}: norm_eps is {values['norm_epsilon']}, wanted 0 < x < 1")
    values["normalize_waveform"], notes["normalize_waveform"] = _normalisation(source, normalize)
    try:
        return Emotion2VecConfig(**values), notes
    except UserError as error:
        raise UserError(f"{source.place}: {error}") from error


def pretraining_config(
    source: SourceConfig, facts: Mapping[str, Any]
) -> tuple[Data2VecConfig, dict[str, str]]:
    """The decoder (sizes from its shapes) and, where it can be read, how upstream trained it."""
    decoder = dict(facts)
    values = dict(decoder)
    try:
        values |= typed(_table(source.audio, "decoder"), DECODER_FIELDS, source.place)
        values |= typed(source.model, PRETRAINING_FIELDS, source.place)
        values |= typed(source.audio, MASKING_FIELDS, source.place)
        if source.model.get("layer_norm_target_layer") is True:
            values["target_norm"] = "layer"
        return Data2VecConfig(**values), {}
    except UserError as error:
        return Data2VecConfig(**decoder), {"pretraining settings": f"defaults, since {error}"}


def _normalisation(source: SourceConfig, override: bool | None) -> tuple[bool, str]:
    if override is not None:
        return override, "as asked on the command line"
    if source.is_emotion2vec_s:
        return False, "Emotion2Vec-S: its published extraction feeds the raw waveform"
    for section, name in ((source.model, "model"), (source.task, "task")):
        if "normalize" in section:
            return coerce(section["normalize"], bool, "normalize", source.place), f"{name} config"
    return True, "assumed: emotion2vec's own extraction normalises"


def _sections(model: Mapping[str, Any], whole: Mapping[str, Any], place: str) -> SourceConfig:
    audio = _table(_table(model, "modalities"), "audio")
    return SourceConfig(model, audio, _table(whole, "task"), place)


def _table(parent: Any, key: str) -> dict[str, Any]:
    value = parent.get(key) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}
