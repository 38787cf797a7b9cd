"""C2SER's connector: acoustic tokens and semantic frames in, language-model embeddings out.

Down-sampler, tokens placed before the frames, speech Transformer, projection. Nothing here lets
padding into a real position: the down-sampler only looks back, and attention is masked.

Shapes: B batch, T encoder frames, R = ceil(ceil(T / 2) / 2) after the down-sampler, E tokens,
S = E + R, C width of the encoder's frames, D width of the speech Transformer, O width of the
language model, L layers.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
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
    Dense,
    LayerNorm,
    dropout,
    full_precision,
    gelu,
    parameter,
)
from c2ser_jax.models.prenorm import EPSILON, BlockConfig, PreNormBlock, scan_prenorm

STRIDES = (1, 2, 2)
"""Of the down-sampler's convolutions: a quarter of the frames is left."""

KERNEL = 3


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """Sizes and options of the connector; the defaults are C2SER's with Qwen2-7B.

    `encoder_width` is that of the encoder's frames, to which shorter acoustic tokens are padded
    with zeros. Dropouts act in training only: `position_dropout` after the input norm and after
    the positions are added, `dropout` on the blocks' branches, `activation_dropout` inside their
    perceptrons (upstream trains with 0.1 each).
    """

    encoder_width: int = 1024
    width: int = 1024
    depth: int = 4
    heads: int = 4
    mlp_width: int = 2560
    output_width: int = 3584
    positions: int = 5000
    position_dropout: float = 0.1
    dropout: float = 0.1
    activation_dropout: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention_implementation: Implementation = "xla"

    def __post_init__(self):
        """Raises UserError for sizes that don't make a connector."""
        refuse(self._complaints())

    def _complaints(self) -> Complaints:
        yield from block_complaints(self)
        yield self.width % 2 != 0, f"width is {self.width}: it must be even"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ConnectorConfig":
        """Rebuilds a config from its JSON form. Errors: UserError for an unknown field."""
        return config_from_dict(cls, values)

    @property
    def block(self) -> BlockConfig:
        """What one block of the speech Transformer is made of."""
        return BlockConfig(
            width=self.width, heads=self.heads, mlp_width=self.mlp_width, activation="relu",
            key_bias=True, dropout=self.dropout, activation_dropout=self.activation_dropout,
            dtype=self.dtype, remat=self.remat,
            attention_implementation=self.attention_implementation,
        )  # fmt: skip

    def check(self, tokens: int, token_width: int, frames: int, frame_width: int | None) -> None:
        """Raises UserError when tokens and frames of these counts and widths don't fit.

        `frames` counts them after the down-sampler; `frame_width` None: there are none.
        """
        if token_width > self.encoder_width:
            raise UserError(
                f"acoustic tokens of width {token_width} don't fit the connector's encoder_width "
                f"{self.encoder_width}: they can be padded but not cut; make encoder_width larger"
            )
        if frame_width not in (None, self.encoder_width):
            raise UserError(
                f"the encoder's frames have width {frame_width}, the connector's encoder_width is "
                f"{self.encoder_width}: set it to the encoder's width"
            )
        if tokens + frames > self.positions:
            raise UserError(
                f"{tokens} tokens and {frames} frames are more than the connector's "
                f"{self.positions} positions: cut the audio into windows first"
            )


@flax.struct.dataclass
class ConnectorOutput:
    """What the language model hears of a batch.

    embeddings dtype[B, S, O]; mask bool[B, S], True = real; begin and end float32[O], the vectors
    that stand before and after an utterance's speech; layers None, or a dict of the intermediates
    `down_sample` [B, R, C] with `down_sample_mask` [B, R] (unless tokens stand alone), `joined`
    [B, S, C], `block_out` [L, B, S, D], `transformer` [B, S, D].
    """

    embeddings: jax.Array
    mask: jax.Array
    begin: jax.Array
    end: jax.Array
    layers: dict[str, jax.Array] | None = None


class DownSampler(nn.Module):
    """Three causal convolutions, each followed by GELU; every real frame sees real frames alone."""

    cfg: ConnectorConfig

    @nn.compact
    def __call__(self, x, mask):
        """Maps dtype[B, T, C] and mask bool[B, T] to (dtype[B, R, C], bool[B, R])."""
        dtype, C = jnp.dtype(self.cfg.dtype), self.cfg.encoder_width
        x = x.astype(dtype)
        for i, stride in enumerate(STRIDES):
            kernel, bias = ConvParameters((KERNEL, C, C), name=f"conv_{i}")()
            x = jnp.pad(x, ((0, 0), (KERNEL - 1, 0), (0, 0)))
            with full_precision(dtype):
                x = strided_conv(x, kernel.astype(dtype), stride=stride)
            x = gelu(x + bias.astype(dtype))
            mask = mask[:, ::stride]
        return with_logical_constraint(x, ("batch", "time", "channels_in")), mask


class ConvParameters(nn.Module):
    """Holds a convolution's parameters; the caller convolves."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self):
        """Returns (kernel float32[K, Cin, Cout], bias float32[Cout])."""
        axes = ("kernel", "channels_in", "width")
        kernel = parameter(self, "kernel", TORCH_UNIFORM, self.shape, axes)
        return kernel, parameter(
            self, "bias", nn.initializers.zeros_init(), self.shape[2:], axes[2:]
        )


class SpeechTransformer(nn.Module):
    """Linear map and norm, sinusoidal positions, pre-norm blocks, a final norm.

    `positions` is a parameter because checkpoints hold the table (rounded to bfloat16 in the
    published one); no published recipe trains it.
    """

    cfg: ConnectorConfig

    @nn.compact
    def __call__(self, x, mask, *, train: bool = False, collect: Collection[str] = ()):
        """Maps dtype[B, S, C], mask bool[B, S] to (dtype[B, S, D], what `collect` names)."""
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        drops = train and cfg.position_dropout > 0.0
        keys = jax.random.split(self.make_rng("dropout")) if drops else (None, None)
        x = Dense(cfg.width, ("channels_in", "width"), dtype, name="embed")(x)
        x = dropout(LayerNorm(EPSILON, name="embed_norm")(x), cfg.position_dropout, keys[0])
        shape = (cfg.positions, cfg.width)
        table = parameter(self, "positions", interleaved_sinusoids, shape, ("time", "width"))
        x = x * math.sqrt(cfg.width) + table[: x.shape[1]].astype(dtype)
        x = dropout(x, cfg.position_dropout, keys[1])
        x = with_logical_constraint(x, ("batch", "time", "width"))
        x, collected = scan_prenorm(
            PreNormBlock(cfg.block, name="encoders"), x, mask, depth=cfg.depth, train=train,
            collect=collect,
        )  # fmt: skip
        return LayerNorm(EPSILON, name="after_norm")(x), collected


class Connector(nn.Module):
    """From encoder frames and acoustic tokens to what the language model hears.

    Source: `LLMASR_Model.get_embedding_from_wav` of C2SER.
    """

    cfg: ConnectorConfig

    @nn.compact
    def __call__(
        self, tokens, frames=None, frame_mask=None, *, ssl_only: bool = False, train: bool = False,
        return_layers: bool = False,
    ):  # fmt: skip
        """Joins a batch of tokens and frames.

        Args:
          tokens: float[B, E, W], W at most C: acoustic tokens, all of them real.
          frames: float[B, T, C] of the encoder; may be None with `ssl_only`.
          frame_mask: bool[B, T], True = real, in front of the padding.
          ssl_only: hears the tokens alone, as upstream's training forward does; its inference
            hears both.
          train: dropout, which draws from the rng collection "dropout".
          return_layers: also returns the intermediates.

        Returns:
          ConnectorOutput, S = E + R, or E with `ssl_only`.

        Raises:
          UserError: widths that don't fit, or more positions than the table has.
        """
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        E, layers = tokens.shape[1], {}
        if frames is None and not ssl_only:
            raise UserError("the connector got no frames: give them or set ssl_only")
        count, width = 0, None
        if frames is not None and not ssl_only:
            count, width = -(-frames.shape[1] // math.prod(STRIDES)), frames.shape[-1]
        cfg.check(E, tokens.shape[-1], count, width)
        x = jnp.pad(tokens, ((0, 0), (0, 0), (0, cfg.encoder_width - tokens.shape[-1])))
        x, mask = x.astype(dtype), jnp.ones(tokens.shape[:2], bool)
        down_sample = DownSampler(cfg, name="down_sample")
        if not ssl_only:
            y, kept = down_sample(frames, frame_mask)
            layers = {"down_sample": y, "down_sample_mask": kept}
            x, mask = jnp.concatenate([x, y], 1), jnp.concatenate([mask, kept], 1)
        elif self.is_initializing():  # the same parameters in both modes
            down_sample(jnp.zeros((1, 1, cfg.encoder_width)), jnp.ones((1, 1), bool))
        x = jnp.where(mask[:, :, None], x, jnp.zeros((), dtype))
        transformer = SpeechTransformer(cfg, name="speech_transformer")
        collect = ("block_out",) if return_layers else ()
        y, blocks = transformer(x, mask, train=train, collect=collect)
        out = Dense(cfg.output_width, ("width", "embed_in"), dtype, name="speech_llama_proj")(y)
        out = with_logical_constraint(out, ("batch", "time", "embed_in"))
        marks = parameter(
            self, "speech_marks", nn.initializers.normal(1.0), (2, cfg.output_width),
            ("tokens", "embed_in"),
        )  # fmt: skip
        layers |= {"joined": x, "transformer": y} | blocks
        return ConnectorOutput(out, mask, marks[0], marks[1], layers if return_layers else None)


def interleaved_sinusoids(key, shape, dtype):
    """Positions [T, D] with sines in the even columns and cosines in the odd ones; no `key` used.

    Source: Vaswani et al. 2017, section 3.5.
    """
    T, D = shape
    rates = np.exp(-np.log(10_000.0) * np.arange(0, D, 2) / D)
    angles = np.arange(T)[:, None] * rates
    return jnp.asarray(np.stack([np.sin(angles), np.cos(angles)], -1).reshape(T, D), dtype)
