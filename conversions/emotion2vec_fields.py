"""Upstream's names for the fields of our configs, and how their untrusted values are read.

Each table is {our field: (upstream's key, type)}; `UNSUPPORTED` lists what must have one value.
"""

import math
from collections.abc import Mapping
from typing import Any

from c2ser_jax.errors import UserError

MODEL_FIELDS: dict[str, tuple[str, type]] = {
    "width": ("embed_dim", int),
    "depth": ("depth", int),
    "heads": ("num_heads", int),
    "mlp_ratio": ("mlp_ratio", float),
    "norm_epsilon": ("norm_eps", float),
    "layer_norm_first": ("layer_norm_first", bool),
    "input_dropout": ("dropout_input", float),
    "dropout": ("encoder_dropout", float),
    "attention_dropout": ("attention_dropout", float),
    "activation_dropout": ("activation_dropout", float),
    "mlp_dropout": ("post_mlp_drop", float),
    "layer_drop": ("layerdrop", float),
}
AUDIO_FIELDS: dict[str, tuple[str, type]] = {
    "prenet_depth": ("prenet_depth", int),
    "extra_tokens": ("num_extra_tokens", int),
    "position_width": ("conv_pos_width", int),
    "position_depth": ("conv_pos_depth", int),
    "position_groups": ("conv_pos_groups", int),
    "prenet_dropout": ("prenet_dropout", float),
    "prenet_layer_drop": ("prenet_layerdrop", float),
    "alibi": ("use_alibi_encoder", bool),
    "alibi_initial_scale": ("alibi_scale", float),
}
PRETRAINING_FIELDS: dict[str, tuple[str, type]] = {
    "clone_batch": ("clone_batch", int),
    "average_top_k_layers": ("average_top_k_layers", int),
}
MASKING_FIELDS: dict[str, tuple[str, type]] = {
    "mask_prob": ("mask_prob", float),
    "mask_length": ("mask_length", int),
    "mask_prob_adjust": ("mask_prob_adjust", float),
    "mask_dropout": ("mask_dropout", float),
    "mask_noise_std": ("mask_noise_std", float),
}
DECODER_FIELDS: dict[str, tuple[str, type]] = {
    "decoder_residual": ("decoder_residual", bool),
    "decoder_input_dropout": ("input_dropout", float),
}
UNSUPPORTED = (
    ("model", "norm_affine", True),
    ("audio", "extractor_mode", "layer_norm"),
    ("audio", "conv_pos_pre_ln", False),
    ("audio", "learned_alibi", False),
)


def typed(
    section: Mapping[str, Any], fields: Mapping[str, tuple[str, type]], where: str
) -> dict[str, Any]:
    """Our fields as far as `section` has them; raises `UserError` for a value out of form."""
    return {
        name: coerce(section[key], kind, key, where)
        for name, (key, kind) in fields.items()
        if section.get(key) is not None
    }


def coerce(value: Any, kind: type, key: str, where: str) -> Any:
    """`value` as bool, int (at most 65536, steps apart) or finite float; raises `UserError`."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif (
        isinstance(value, int | float | str)
        and not isinstance(value, bool)
        and len(str(value)) < 40
    ):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if kind is float and math.isfinite(number):
            return number
        limit = 65536
        if kind is int and number == number // 1 and 0 <= number <= limit:
            return int(number)
    raise UserError(f"{where}: {key} is {value!r:.40}, wanted {kind.__name__} in a usable range")
