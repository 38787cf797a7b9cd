"""Whisper's encoder over utterances of their real length: no silence is appended, none attended to.

Shapes: B batch, M mel bins, N mel frames (100 per second), T encoder frames (50 per second),
D width, L layers, K kernel.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint

from c2ser_jax.errors import UserError
from c2ser_jax.models.attention import Implementation
from c2ser_jax.models.config_checks import (
    Complaints,
    block_complaints,
    config_from_dict,
    refuse,
)
from c2ser_jax.models.convolution import strided_conv
from c2ser_jax.models.layers import (
    TORCH_UNIFORM,
    LayerNorm,
    dropout,
    full_precision,
    gelu,
    parameter,
)
from c2ser_jax.models.log_mel import HOP_SAMPLES
from c2ser_jax.models.prenorm import EPSILON, BlockConfig, PreNormBlock, scan_prenorm

SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(width=384, depth=4, heads=6, mlp_width=1536),
    "base": dict(width=512, depth=6, heads=8, mlp_width=2048),
    "small": dict(width=768, depth=12, heads=12, mlp_width=3072),
    "medium": dict(width=1024, depth=24, heads=16, mlp_width=4096),
    "large": dict(width=1280, depth=32, heads=20, mlp_width=5120),
    "large-v2": dict(width=1280, depth=32, heads=20, mlp_width=5120),
    "large-v3": dict(width=1280, depth=32, heads=20, mlp_width=5120, mel_bins=128),
    "large-v3-turbo": dict(width=1280, depth=32, heads=20, mlp_width=5120, mel_bins=128),
}
"""The published encoders; the English-only ones (tiny.en ...) have the same sizes."""


@dataclasses.dataclass(frozen=True)
class WhisperEncoderConfig:
    """Sizes and options of the encoder; the defaults are Whisper medium, which C2SER hears with.

    Dropouts act in training only: `position_dropout` after the positions are added, `dropout` on
    the blocks' branches, `activation_dropout` inside their perceptrons (C2SER trains with 0.1
    each). `published_padding` repeats what upstream's batches do to padded utterances: the mask is
    taken at every second frame counted from the padded end, and what the first convolution makes of
    padding reaches the second. It reproduces published batches, not published single utterances.
    """

    mel_bins: int = 80
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    positions: int = 1500
    position_dropout: float = 0.0
    dropout: float = 0.0
    activation_dropout: float = 0.0
    published_padding: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention_implementation: Implementation = "xla"

    def __post_init__(self):
        """Raises UserError for sizes that don't make an encoder."""
        refuse(self._complaints())

    def _complaints(self) -> Complaints:
        yield from block_complaints(self)
        yield self.width % 2 != 0, f"width is {self.width}: it must be even"

    @classmethod
    def named(cls, size: str, **changes: Any) -> "WhisperEncoderConfig":
        """The encoder of a published size, such as "medium". Errors: UserError for another name."""
        if size not in SIZES:
            raise UserError(f"there is no Whisper {size!r}: use one of {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WhisperEncoderConfig":
        """Rebuilds a config from its JSON form. Errors: UserError for an unknown field."""
        return config_from_dict(cls, values)

    @property
    def max_samples(self) -> int:
        """The longest audio with a position for each of its frames (30 s as published)."""
        return 2 * self.positions * HOP_SAMPLES

    @property
    def block(self) -> BlockConfig:
        """What one transformer block of this encoder is made of."""
        return BlockConfig(
            width=self.width, heads=self.heads, mlp_width=self.mlp_width, activation="gelu",
            key_bias=False, dropout=self.dropout, activation_dropout=self.activation_dropout,
            dtype=self.dtype, remat=self.remat,
            attention_implementation=self.attention_implementation,
        )  # fmt: skip

    def check_mel_frames(self, mel_frames: int) -> None:
        """Raises UserError for more mel frames than there are positions: nothing is cut off."""
        if mel_frames > 2 * self.positions:
            raise UserError(
                f"{mel_frames} mel frames ({mel_frames / 100:.2f} s) are more than the Whisper "
                f"encoder's {self.positions} positions hold ({self.positions / 50:.2f} s): cut the "
                "audio into windows first"
            )


@flax.struct.dataclass
class WhisperOutput:
    """frames dtype[B, T, D]; mask bool[B, T], True = real; layers None, or the intermediates.

    Those are `embed` [B, T, D], after convolutions and positions, and `block_out` [L, B, T, D].
    """

    frames: jax.Array
    mask: jax.Array
    layers: dict[str, jax.Array] | None = None


class Conv(nn.Module):
    """Convolution over time with a kernel of 3 and one frame of zeros at either end."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """Maps float[B, N, Cin] to dtype[B, ceil(N / stride), features]."""
        shape, axes = (3, x.shape[-1], self.features), ("kernel", "channels_in", "width")
        kernel = parameter(self, "kernel", TORCH_UNIFORM, shape, axes)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape[2:], axes[2:])
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (0, 0)))
        with full_precision(self.dtype):
            y = strided_conv(x, kernel.astype(self.dtype), stride=self.stride)
        return y + bias.astype(self.dtype)


class WhisperEncoder(nn.Module):
    """Two convolutions, positions, pre-norm blocks, a final norm. Source: openai/whisper model.py.

    `positions` is a parameter because checkpoints hold it; no published recipe trains it.
    """

    cfg: WhisperEncoderConfig

    @nn.compact
    def __call__(self, features, lengths, *, train: bool = False, return_layers: bool = False):
        """Encodes a batch of log-mel features.

        Args:
          features: float32[B, N, M]; what lies behind a row's real length has no effect.
          lengths: int32[B], real mel frames; a row of 0 gives finite frames and an empty mask.
          train: dropout, which draws from the rng collection "dropout".
          return_layers: also returns the intermediates.

        Returns:
          WhisperOutput with T = ceil(N / 2), of which ceil(lengths / 2) frames are real (with
          `published_padding` and even N: lengths // 2).

        Raises:
          UserError: N is more than twice the number of positions.
        """
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        cfg.check_mel_frames(features.shape[1])
        real = jnp.arange(features.shape[1]) < lengths[:, None]
        x = jnp.where(real[:, :, None], features, 0.0)
        x = gelu(Conv(cfg.width, 1, dtype, name="conv1")(x))
        if not cfg.published_padding:
            x = jnp.where(real[:, :, None], x, jnp.zeros((), dtype))
        x = gelu(Conv(cfg.width, 2, dtype, name="conv2")(x))
        T = x.shape[1]
        is_even = features.shape[1] % 2 == 0
        mask = real[:, 1 if cfg.published_padding and is_even else 0 :: 2]
        shape = (cfg.positions, cfg.width)
        table = parameter(self, "positions", sinusoids, shape, ("time", "width"))
        x = with_logical_constraint(x + table[:T].astype(dtype), ("batch", "time", "width"))
        layers = {"embed": x}
        drops = train and cfg.position_dropout > 0.0
        x = dropout(x, cfg.position_dropout, self.make_rng("dropout") if drops else None)
        x, collected = scan_prenorm(
            PreNormBlock(cfg.block, name="layers"), x, mask, depth=cfg.depth, train=train,
            collect=("block_out",) if return_layers else (),
        )  # fmt: skip
        x = LayerNorm(EPSILON, name="layer_norm")(x)
        return WhisperOutput(x, mask, layers | collected if return_layers else None)


def sinusoids(key, shape, dtype):
    """Whisper's own positions [T, D]: sines in the first half of the columns, cosines in the other.

    Wavelengths grow geometrically from 2 pi to 2 pi * 10000. `key` is not used.
    """
    T, D = shape
    rates = np.exp(-np.log(10_000.0) * np.arange(D // 2) / max(1, D // 2 - 1))
    angles = np.arange(T)[:, None] * rates
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], 1), dtype)
