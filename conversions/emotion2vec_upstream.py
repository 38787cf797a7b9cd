"""Writes our configs in upstream's words: the `cfg` of a checkpoint that never had one."""

from collections.abc import Mapping
from typing import Any

from conversions.emotion2vec_fields import (
    AUDIO_FIELDS,
    DECODER_FIELDS,
    MASKING_FIELDS,
    MODEL_FIELDS,
    PRETRAINING_FIELDS,
    UNSUPPORTED,
)

# What upstream's classes ask of a config beyond our fields; none of it changes a result.
_UPSTREAM_MODEL = {
    "_name": "data2vec_multi",
    "loss_beta": 0.0,
    "loss_scale": None,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "norm_affine": True,
    "end_of_block_targets": False,
    "supported_modality": "AUDIO",
}
_UPSTREAM_AUDIO = {
    "type": "AUDIO",
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "init_extra_token_zero": True,
    "local_grad_mult": 1.0,
    "alibi_max_pos": None,
    "decoder": None,
}


def upstream_config(
    model: Mapping[str, Any], pretraining: Mapping[str, Any] | None, is_classifier: bool
) -> dict[str, Any]:
    """The `cfg` of a checkpoint that never had one: upstream's names for our values."""
    stem = [tuple(layer.values()) for layer in model["conv_layers"]]
    per_head = model["alibi_scale"] == "learned_per_head"
    audio: dict[str, Any] = {
        **_UPSTREAM_AUDIO,
        **{key: model[name] for name, (key, _) in AUDIO_FIELDS.items()},
        "learned_alibi_scale": model["alibi_scale"] != "fixed",
        "learned_alibi_scale_per_head": per_head,
        "learned_alibi_scale_per_layer": model["learned_alibi_scale_per_layer"],
        "num_alibi_heads": model["heads"],
        "model_depth": model["depth"],
        "feature_encoder_spec": str(stem),
        **{key: wanted for section, key, wanted in UNSUPPORTED if section == "audio"},
    }
    section: dict[str, Any] = {
        **_UPSTREAM_MODEL,
        **{key: model[name] for name, (key, _) in MODEL_FIELDS.items()},
        "modalities": {"_name": None, "audio": audio},
    }
    if pretraining is not None:
        section |= {key: pretraining[name] for name, (key, _) in PRETRAINING_FIELDS.items()}
        audio |= {key: pretraining[name] for name, (key, _) in MASKING_FIELDS.items()}
        audio["decoder"] = {
            "decoder_dim": pretraining["decoder_width"],
            "decoder_layers": pretraining["decoder_depth"],
            "decoder_kernel": pretraining["decoder_kernel"],
            "decoder_groups": pretraining["decoder_groups"],
            "projection_layers": 1,
            **{key: pretraining[name] for name, (key, _) in DECODER_FIELDS.items()},
        }
    task = {"_name": "audio_pretraining", "normalize": model["normalize_waveform"]}
    if not is_classifier:
        return {"_name": None, "task": task, "model": section}
    task["_name"] = "d2v_audio_classification"
    model_section = {"_name": task["_name"], "d2v_args": {"model": section}}
    return {"_name": None, "task": task, "model": model_section}
