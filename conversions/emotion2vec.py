"""The emotion2vec family: emotion2vec, Emotion2Vec-S (fairseq layout), emotion2vec+ (FunASR).

Shapes in the comments of the table are the source's: D width, C channels, G channels per group,
K kernel, E extra tokens, H heads.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2ser_jax.models.data2vec import Data2VecConfig, Decoder
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecClassifier
from c2ser_jax.models.emotion2vec_config import Emotion2VecConfig
from c2ser_jax.training.checkpoint import flatten
from conversions.conv_spec import published_strides
from conversions.engine import Rule, Table, convolution, linear, unit_axes
from conversions.tensors import LazyTensor

AUDIO = "modality_encoders.AUDIO."
PREFIX = "d2v_model."

CARRIED = re.compile(
    r"_ema([./].*)?|modality_encoders\.(IMAGE|TEXT)\..*|recon_proj\..*|shared_decoder\..*"
)
"""Entries of the state dict that are known and have no place in the model: kept for export."""

_BLOCK = (
    ("attn.qkv.weight", "attn/qkv/kernel", linear),  # [3 D, D], rows (q, k, v) x head x head_dim
    ("attn.qkv.bias", "attn/qkv/bias", None),
    ("attn.proj.weight", "attn/proj/kernel", linear),
    ("attn.proj.bias", "attn/proj/bias", None),
    ("norm1.weight", "norm1/scale", None),
    ("norm1.bias", "norm1/bias", None),
    ("mlp.fc1.weight", "mlp/fc1/kernel", linear),
    ("mlp.fc1.bias", "mlp/fc1/bias", None),
    ("mlp.fc2.weight", "mlp/fc2/kernel", linear),
    ("mlp.fc2.bias", "mlp/fc2/bias", None),
    ("norm2.weight", "norm2/scale", None),
    ("norm2.bias", "norm2/bias", None),
)


def _rules() -> list[Rule]:
    local, position = AUDIO + "local_encoder.conv_layers.{i}.", "encoder/local_encoder/"
    rules = [
        Rule(local + "0.weight", position + "conv_{i}/kernel", convolution),  # [C, C before, K]
        Rule(local + "0.bias", position + "conv_{i}/bias"),
        Rule(local + "2.1.weight", position + "norm_{i}/scale"),
        Rule(local + "2.1.bias", position + "norm_{i}/bias"),
        Rule(AUDIO + "project_features.1.weight", "encoder/project_features/norm/scale"),
        Rule(AUDIO + "project_features.1.bias", "encoder/project_features/norm/bias"),
        Rule(AUDIO + "project_features.2.weight", "encoder/project_features/proj/kernel", linear),
        Rule(AUDIO + "project_features.2.bias", "encoder/project_features/proj/bias"),
        Rule(
            AUDIO + "relative_positional_encoder.{next}.0.weight",  # [D, G, K]
            "encoder/relative_positional_encoder/conv_{i}/kernel",
            convolution,
        ),
        Rule(
            AUDIO + "relative_positional_encoder.{next}.0.bias",
            "encoder/relative_positional_encoder/conv_{i}/bias",
        ),
        Rule(
            AUDIO + "extra_tokens",  # [1, E, D]
            "encoder/extra_tokens",
            unit_axes,
            lambda shape: (1, *shape),
        ),
        Rule(
            AUDIO + "alibi_scale",  # [layers, 1, H, 1, 1], in old files [1, H, 1, 1]
            "encoder/alibi_scale",
            unit_axes,
            lambda shape: (shape[0], 1, shape[1], 1, 1),
        ),
        Rule(AUDIO + "context_encoder.norm.weight", "encoder/context_encoder/norm/scale"),
        Rule(AUDIO + "context_encoder.norm.bias", "encoder/context_encoder/norm/bias"),
        Rule("proj.weight", "proj/kernel", linear),  # [classes, D]
        Rule("proj.bias", "proj/bias"),
        Rule(AUDIO + "decoder.blocks.{i}.0.weight", "decoder/conv_{i}/kernel", convolution),
        Rule(AUDIO + "decoder.blocks.{i}.0.bias", "decoder/conv_{i}/bias"),
        Rule(AUDIO + "decoder.proj.weight", "decoder/proj/kernel", linear),
        Rule(AUDIO + "decoder.proj.bias", "decoder/proj/bias"),
    ]
    for source, target in (
        (AUDIO + "context_encoder.blocks.{layer}.", "encoder/context_encoder/blocks/"),
        ("blocks.{layer}.", "encoder/blocks/"),
    ):
        for name, path, view in _BLOCK:
            rule = Rule(source + name, target + path)
            rules.append(dataclasses.replace(rule, view=view) if view else rule)
    return rules


TABLE = Table(_rules())


def plain_name(name: str) -> str:
    """A source name without FunASR's prefix."""
    return name.removeprefix(PREFIX)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a state dict holds: encoder facts, classes of a head, decoder facts; None = absent."""

    encoder: dict[str, Any]
    classes: int | None
    decoder: dict[str, Any] | None


def parts_of(tensors: Mapping[str, LazyTensor]) -> Parts:
    """Reads sizes off the shapes of a state dict {plain name: tensor}, as far as they tell.

    A decoder of another form than convolutions and one linear map counts as absent.
    """
    shape = {name: tensor.shape for name, tensor in tensors.items()}

    def size(name: str, axis: int) -> int | None:
        found = shape.get(name, ())
        return found[axis] if axis < len(found) and 0 < found[axis] <= 65536 else None

    def count(pattern: str) -> int:
        numbers = {int(m[1]) for name in shape if (m := re.fullmatch(pattern, name, re.ASCII))}
        return len(numbers)

    width = size(AUDIO + "project_features.2.weight", 0)
    fc1 = size("blocks.0.mlp.fc1.weight", 0)
    position = AUDIO + "relative_positional_encoder.1.0.weight"
    group, kernel = size(position, 1), size(position, 2)
    depth = count(re.escape(AUDIO) + r"relative_positional_encoder\.([0-9]{1,3})\.0\.weight")
    stem = count(re.escape(AUDIO) + r"local_encoder\.conv_layers\.([0-9]{1,3})\.0\.weight")
    convs = [AUDIO + f"local_encoder.conv_layers.{i}.0.weight" for i in range(stem)]
    facts = {
        "width": width,
        "depth": count(r"blocks\.([0-9]{1,4})\.attn\.qkv\.weight") or None,
        "prenet_depth": count(
            re.escape(AUDIO) + r"context_encoder\.blocks\.([0-9]{1,4})\.attn\.qkv\.weight"
        ),
        "mlp_ratio": fc1 / width if fc1 and width else None,
        "extra_tokens": size(AUDIO + "extra_tokens", 1) or 0,
        "position_depth": depth or None,
        "position_width": kernel * depth if kernel else None,
        "position_groups": width // group if width and group else None,
        "conv_layers": published_strides([(size(n, 0) or 0, size(n, 2) or 0) for n in convs]),
        "conv_bias": (AUDIO + "local_encoder.conv_layers.0.0.bias") in shape,
        **_alibi(shape.get(AUDIO + "alibi_scale")),
    }
    decoder = _decoder(shape, width)
    classes = size("proj.bias", 0)
    return Parts(facts, classes, decoder if classes is None else None)


def _alibi(shape: tuple[int, ...] | None) -> dict[str, Any]:
    """What the learned scale's shape [layers, 1, heads, 1, 1] (or [1, heads, 1, 1]) tells."""
    if shape is None or len(shape) not in (4, 5):
        return {}
    layers, _, heads, *_ = shape if len(shape) == 5 else (1, *shape)
    many = heads > 1
    return {
        "alibi": True,
        "alibi_scale": "learned_per_head" if many else "learned",
        "learned_alibi_scale_per_layer": layers > 1,
        "heads": heads if many else None,
    }


def _decoder(shape: dict[str, tuple[int, ...]], width: int | None) -> dict[str, Any] | None:
    first = shape.get(AUDIO + "decoder.blocks.0.0.weight", ())
    projection = shape.get(AUDIO + "decoder.proj.weight", ())
    if len(first) != 3 or len(projection) != 2 or not width or not first[1] or not first[2] % 2:
        return None
    depth = 0
    while AUDIO + f"decoder.blocks.{depth}.0.weight" in shape:
        depth += 1
    groups = width // first[1]
    if first[0] < 1 or first[0] % groups or first[0] > 65536 or depth > 64:
        return None
    return {
        "decoder_width": first[0],
        "decoder_depth": depth,
        "decoder_kernel": first[2],
        "decoder_groups": groups,
    }


@functools.lru_cache(maxsize=8)
def target_shapes(
    cfg: Emotion2VecConfig, classes: int | None, pretraining: Data2VecConfig | None
) -> dict[str, tuple[int, ...]]:
    """{"encoder/…": shape} of the model's own parameters, from tracing it with shapes alone.

    Tracing takes about half a second, so the last models are remembered; don't change the result.
    """
    samples = cfg.receptive_samples

    def create() -> dict[str, Any]:
        key, audio = jax.random.key(0), jnp.zeros((1, samples))
        lengths = jnp.full((1,), samples, jnp.int32)
        if classes is not None:
            return dict(Emotion2VecClassifier(cfg, classes).init(key, audio, lengths)["params"])
        tree = {"encoder": Emotion2Vec(cfg).init(key, audio, lengths)["params"]}
        if pretraining is not None:
            decoder = Decoder(pretraining)
            frames, mask = jnp.zeros((1, 3, cfg.width)), jnp.ones((1, 3), bool)
            tree["decoder"] = decoder.init(key, frames, mask)["params"]
        return tree

    tree = nn.meta.unbox(jax.eval_shape(create))
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}
