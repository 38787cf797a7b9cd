"""emotion2vec, emotion2vec+, Emotion2Vec-S: a data2vec 2.0 audio encoder with utterance tokens.

The network is that of fairseq's `data2vec2.py` and `modalities/{audio,base,modules}.py`, post-norm,
except that padding never reaches a real frame: an utterance gives the same features alone and in
any batch.

Shapes: B batch, N samples, T frames, E extra tokens, S = E + T, D width, H heads, C channels,
L layers.
"""

import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from c2ser_jax.models.attention import Attention, alibi_slopes, frame_distances
from c2ser_jax.models.convolution import grouped_conv, row_by_row, strided_conv
from c2ser_jax.models.emotion2vec_config import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.layers import (
    TORCH_UNIFORM,
    Dense,
    LayerNorm,
    Mlp,
    dropout,
    full_precision,
    gelu,
    layer_norm,
    ordered_sum,
    parameter,
    reciprocal_root,
    rounded,
)

__all__ = [
    "ConvLayer",
    "Emotion2Vec",
    "Emotion2VecClassifier",
    "Emotion2VecConfig",
    "Emotion2VecOutput",
]

OUTER_EPSILON = 1e-5
"""Of every norm but those of the blocks and the prenet, which take the config's."""

LAYERS = ("prenet_in", "prenet_out", "block_out", "layer_results")
"""What `Emotion2Vec.contextualize` can return beside its features."""


@flax.struct.dataclass
class Emotion2VecOutput:
    """What the encoder says about a batch.

    frames dtype[B, T, D]; frame_mask bool[B, T], True = real; tokens dtype[B, E, D]; pooled
    float32[B, D], the mean of the real frames (zero without any); layers None, or a dict of the
    intermediates `conv`, `proj`, `pos` [B, T, .], `prenet_in`, `prenet_out` [B, S, D],
    `block_out`, `layer_results` [L, B, S, D] (a block's perceptron output before the residual).
    """

    frames: jax.Array
    frame_mask: jax.Array
    tokens: jax.Array
    pooled: jax.Array
    layers: dict[str, jax.Array] | None = None


class Conv(nn.Module):
    """Holds a convolution's parameters; the caller convolves."""

    shape: tuple[int, int, int]
    axis: str
    kernel_init: Any
    use_bias: bool

    @nn.compact
    def __call__(self):
        """Returns (kernel float32[K, Cin, Cout], bias float32[Cout] or None)."""
        axes = ("kernel", "channels_in", self.axis)
        kernel = parameter(self, "kernel", self.kernel_init, self.shape, axes)
        if not self.use_bias:
            return kernel, None
        zeros = nn.initializers.zeros_init()
        return kernel, parameter(self, "bias", zeros, self.shape[2:], axes[2:])


class Norm(nn.Module):
    """Holds the parameters of a norm over channels; the caller normalises."""

    channels: int

    @nn.compact
    def __call__(self):
        """Returns (scale float32[C], bias float32[C])."""
        shape, axes = (self.channels,), ("channels",)
        scale = parameter(self, "scale", nn.initializers.ones_init(), shape, axes)
        return scale, parameter(self, "bias", nn.initializers.zeros_init(), shape, axes)


class LocalEncoder(nn.Module):
    """Convolutions over the waveform, each followed by a channel norm and GELU."""

    cfg: Emotion2VecConfig

    @nn.compact
    def __call__(self, audio):
        """Maps the waveform dtype[B, N] to dtype[B, T, C]."""
        layers, channels = [], 1
        for i, layer in enumerate(self.cfg.conv_layers):
            shape = (layer.kernel, channels, layer.channels)
            init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            conv = Conv(shape, "channels", init, self.cfg.conv_bias, name=f"conv_{i}")()
            layers.append((*conv, *Norm(layer.channels, name=f"norm_{i}")()))
            channels = layer.channels
        strides = tuple(layer.stride for layer in self.cfg.conv_layers)
        x = row_by_row(functools.partial(local_convolutions, strides=strides), layers, audio)
        return with_logical_constraint(x, ("batch", "time", "channels"))


class ProjectFeatures(nn.Module):
    """Channel norm, then a linear map to the width of the transformer."""

    cfg: Emotion2VecConfig

    @nn.compact
    def __call__(self, x):
        """Maps dtype[B, T, C] to dtype[B, T, D]."""
        x = LayerNorm(OUTER_EPSILON, "channels", name="norm")(x)
        return Dense(self.cfg.width, ("channels", "width"), jnp.dtype(self.cfg.dtype), name="proj")(
            x
        )


class PositionalEncoder(nn.Module):
    """Grouped convolutions whose output, added to the frames, tells them where they are."""

    cfg: Emotion2VecConfig

    @nn.compact
    def __call__(self, x, mask):
        """Maps dtype[B, T, D] and mask bool[B, T] to dtype[B, T, D].

        Padding is zeroed before every convolution: bias and norm fill it again after each.
        """
        D, groups = x.shape[-1], self.cfg.position_groups
        shape = (self.cfg.position_kernel, D // groups, D)
        for i in range(self.cfg.position_depth):
            kernel, bias = Conv(shape, "width", TORCH_UNIFORM, True, name=f"conv_{i}")()
            x = conv_norm_gelu(zero_padding(x, mask), kernel, bias, groups=groups)
        return x


class Block(nn.Module):
    """Transformer block, normalised after each residual sum."""

    cfg: Emotion2VecConfig

    @nn.compact
    def __call__(self, x, slopes, *, distances=None, mask=None, train: bool = False):
        """Maps x dtype[B, S, D] to (the block's output, its perceptron's output), both like x."""
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        attention = Attention(
            cfg.heads, dtype, cfg.attention_implementation, cfg.dropout, cfg.attention_dropout,
            name="attn",
        )  # fmt: skip
        y = attention(x, distances=distances, slopes=slopes, mask=mask, train=train)
        x = LayerNorm(cfg.norm_epsilon, name="norm1")(x + y)
        mlp = Mlp(int(cfg.width * cfg.mlp_ratio), dtype, cfg.activation_dropout, name="mlp")
        result = mlp(x, train=train)
        drops = train and cfg.mlp_dropout > 0.0
        y = dropout(result, cfg.mlp_dropout, self.make_rng("dropout") if drops else None)
        x = LayerNorm(cfg.norm_epsilon, name="norm2")(x + y)
        return with_logical_constraint(x, ("batch", "time", "width")), result


class ContextEncoder(nn.Module):
    """The prenet: a norm, dropout, then blocks."""

    cfg: Emotion2VecConfig

    def setup(self):
        """Names the parts as the parameter tree does."""
        self.norm = LayerNorm(self.cfg.norm_epsilon)
        if self.cfg.prenet_depth:
            self.blocks = Block(self.cfg)

    def __call__(self, x, slopes, *, distances, mask, train: bool = False):
        """Maps dtype[B, S, D] to the same shape."""
        drops = train and self.cfg.prenet_dropout > 0.0
        key = self.make_rng("dropout") if drops else None
        x = dropout(self.norm(x), self.cfg.prenet_dropout, key)
        if self.cfg.prenet_depth:
            x, _ = scan_blocks(
                self.blocks, x, slopes, distances=distances, mask=mask, train=train,
                depth=self.cfg.prenet_depth, layer_drop=self.cfg.prenet_layer_drop,
            )  # fmt: skip
        return x


class Emotion2Vec(nn.Module):
    """The encoder: waveform in, frame features and utterance tokens out."""

    cfg: Emotion2VecConfig

    def setup(self):
        """Names the parts as the parameter tree does."""
        cfg = self.cfg
        self.local_encoder = LocalEncoder(cfg)
        self.project_features = ProjectFeatures(cfg)
        self.relative_positional_encoder = PositionalEncoder(cfg)
        self.context_encoder = ContextEncoder(cfg)
        self.blocks = Block(cfg)
        if cfg.extra_tokens:
            shape, axes = (cfg.extra_tokens, cfg.width), ("tokens", "width")
            self.extra_tokens = parameter(self, "extra_tokens", _initial_tokens, shape, axes)
        if cfg.alibi and cfg.alibi_scale != "fixed":
            layers = cfg.prenet_depth + cfg.depth if cfg.learned_alibi_scale_per_layer else 1
            heads = cfg.heads if cfg.alibi_scale == "learned_per_head" else 1
            init = nn.initializers.constant(cfg.alibi_initial_scale)
            self.alibi_scale = parameter(self, "alibi_scale", init, (layers, heads), (None, None))

    def __call__(
        self, audio, audio_samples, *, audio_statistics=None, hidden=None, train: bool = False,
        return_layers: bool = False,
    ):  # fmt: skip
        """Encodes a batch of waveforms.

        Args:
          audio: float32[B, N], 16 kHz; what lies behind a row's real length has no effect.
          audio_samples: int32[B], real lengths; 0 marks a padding row, whose outputs are finite
            and whose frame mask is all False.
          audio_statistics: float32[B, 2], mean and variance of the whole utterance a row was cut
            from; used instead of the row's own where the config normalises waveforms.
          hidden: bool[B, T] or None, True = a frame that context and pooling go without, as the
            student's masked frames (SpecAugment for fine-tuning).
          train: dropout and layer drop, which draw from the rng collection "dropout".
          return_layers: also returns the intermediates.

        Returns:
          Emotion2VecOutput; T = max(1, cfg.frames(N)).
        """
        proj, frame_mask, conv = self.local_features(audio, audio_samples, audio_statistics)
        seen = frame_mask if hidden is None else frame_mask & ~hidden
        shown = proj if hidden is None else zero_padding(proj, seen)
        pos = self.positions(shown, frame_mask)
        tokens, frames, layers = self.contextualize(
            proj + pos, seen, train=train, collect=LAYERS if return_layers else ()
        )
        if return_layers:
            layers = {"conv": conv, "proj": proj, "pos": pos, **layers}
        return Emotion2VecOutput(
            frames, frame_mask, tokens, masked_mean(frames, seen), layers or None
        )

    def local_features(self, audio, audio_samples, audio_statistics=None):
        """Frames without context: (proj dtype[B, T, D], mask bool[B, T], conv dtype[B, T, C])."""
        cfg = self.cfg
        short = cfg.receptive_samples - audio.shape[1]
        if short > 0:
            audio = jnp.pad(audio, ((0, 0), (0, short)))
        audio = with_logical_constraint(audio, ("batch", "samples"))
        real = jnp.arange(audio.shape[1]) < audio_samples[:, None]
        audio = jnp.where(real, audio.astype(jnp.float32), 0.0)
        if cfg.normalize_waveform:
            audio = normalize_waveform(audio, audio_samples, audio_statistics)
        conv = self.local_encoder(audio.astype(cfg.dtype))
        frame_mask = jnp.arange(conv.shape[1]) < cfg.frames(audio_samples)[:, None]
        proj = with_logical_constraint(self.project_features(conv), ("batch", "time", "width"))
        return proj, frame_mask, conv

    def positions(self, x, frame_mask):
        """The positional stack's output dtype[B, T, D] for frames dtype[B, T, D]."""
        return self.relative_positional_encoder(x, frame_mask)

    def contextualize(
        self,
        x,
        frame_mask,
        *,
        frame_indices=None,
        train: bool = False,
        collect: Collection[str] = (),
    ):
        """Tokens and transformer blocks over frames that already know their positions.

        Args:
          x: dtype[B, T, D].
          frame_mask: bool[B, T], True = real.
          frame_indices: int[B, T], where in the utterance each frame stood; None: 0, 1, 2 ...
          train: as in `__call__`.
          collect: which of `LAYERS` the third result holds.

        Returns:
          tokens dtype[B, E, D], frames dtype[B, T, D], and a dict of the intermediates asked for.
        """
        cfg, (B, T, D) = self.cfg, x.shape
        E = cfg.extra_tokens
        if E:
            tokens = jnp.broadcast_to(self.extra_tokens.astype(x.dtype), (B, E, D))
            x = jnp.concatenate([tokens, x], 1)
        mask = jnp.pad(frame_mask, ((0, 0), (E, 0)), constant_values=True)
        slopes, distances = self._slopes(), None
        if cfg.alibi:
            indices = jnp.arange(T)[None] if frame_indices is None else frame_indices
            distances = frame_distances(indices, E)
        layers = {"prenet_in": x}
        x = self.context_encoder(
            x, slopes[: cfg.prenet_depth], distances=distances, mask=mask, train=train
        )
        layers["prenet_out"] = x
        drops = train and cfg.input_dropout > 0.0
        x = dropout(x, cfg.input_dropout, self.make_rng("dropout") if drops else None)
        x, collected = scan_blocks(
            self.blocks, x, slopes[cfg.prenet_depth :], distances=distances, mask=mask,
            train=train, depth=cfg.depth, layer_drop=cfg.layer_drop, collect=collect,
        )  # fmt: skip
        layers = {name: value for name, value in layers.items() if name in collect} | collected
        return x[:, :E], x[:, E:], layers

    def _slopes(self):
        """Slopes float32[prenet_depth + depth, H]; a negative scale counts as zero."""
        cfg = self.cfg
        learned = cfg.alibi and cfg.alibi_scale != "fixed"
        scale = self.alibi_scale if learned else jnp.full((1, 1), cfg.alibi_initial_scale)
        slopes = jnp.maximum(scale, 0.0) * alibi_slopes(cfg.heads)
        return jnp.broadcast_to(slopes, (cfg.prenet_depth + cfg.depth, cfg.heads))


class Emotion2VecClassifier(nn.Module):
    """The encoder with a linear map from its mean-pooled frames to classes (emotion2vec+)."""

    cfg: Emotion2VecConfig
    classes: int

    @nn.compact
    def __call__(self, audio, audio_samples, **options):
        """Returns (logits float32[B, classes], Emotion2VecOutput) for `Emotion2Vec`'s arguments."""
        output = Emotion2Vec(self.cfg, name="encoder")(audio, audio_samples, **options)
        logits = Dense(self.classes, ("width", "classes"), jnp.float32, name="proj")(output.pooled)
        return logits, output


def scan_blocks(block: Block, x, slopes, *, distances, mask, train, depth: int,
                layer_drop: float, collect: Collection[str] = ()):  # fmt: skip
    """Runs x through `depth` copies of `block`, parameters stacked on a leading layer axis.

    x dtype[B, S, D], slopes float32[L, H] -> (x, those of {"block_out", "layer_results"}
    dtype[L, B, S, D] that `collect` names). In training each block is skipped with probability
    `layer_drop`, for the whole batch.
    """

    def body(block: Block, x, slopes):
        y, result = block(x, slopes, distances=distances, mask=mask, train=train)
        if train and layer_drop > 0.0:
            skip = jax.random.bernoulli(block.make_rng("dropout"), layer_drop)
            y = jnp.where(skip, x, y)
        outputs = {"block_out": y, "layer_results": result}
        return y, {name: value for name, value in outputs.items() if name in collect}

    if block.cfg.remat:
        body = nn.remat(body, prevent_cse=False)
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(block, x, slopes)


def normalize_waveform(audio, audio_samples, audio_statistics=None):
    """Zero mean and unit variance over the real samples (biased, 1e-5 added), zero behind them.

    audio float32[B, N], zero behind audio_samples int32[B]; audio_statistics float32[B, 2] =
    (mean, variance) replaces the row's own. Source: torch's layer_norm over the whole waveform in
    FunASR's emotion2vec `inference`.
    """
    real = jnp.arange(audio.shape[1]) < audio_samples[:, None]
    if audio_statistics is None:
        count = jnp.maximum(audio_samples, 1)[:, None].astype(jnp.float32)
        mean = _row_sums(audio) / count
        variance = _row_sums(jnp.square(jnp.where(real, audio - rounded(mean), 0.0))) / count
    else:
        mean, variance = audio_statistics[:, :1], audio_statistics[:, 1:]
    scaled = (audio - rounded(mean)) * reciprocal_root(rounded(variance) + 1e-5)
    return jnp.where(real, scaled, 0.0)


def _row_sums(x, columns: int = 128):
    """float32[B, N] -> float32[B, 1], summed in the same order in every batch."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % columns)))
    return ordered_sum(ordered_sum(x.reshape(x.shape[0], -1, columns))[:, :, None])


def conv_norm_gelu(x, kernel, bias, *, groups: int):
    """Grouped convolution that keeps the length, norm without parameters, GELU.

    dtype[B, T, Cin] -> dtype[B, T, Cout].
    """
    with full_precision(x.dtype):
        y = grouped_conv(x, kernel.astype(x.dtype), groups=groups)
    return gelu(layer_norm(y + bias.astype(x.dtype), epsilon=OUTER_EPSILON))


def local_convolutions(layers, audio, *, strides: tuple[int, ...]):
    """Convolution without padding, norm and GELU, once per layer: dtype[B, N] -> dtype[B, T, C].

    layers: (kernel [K, Cin, Cout], bias [Cout] or None, norm's scale [Cout], norm's bias [Cout]).
    """
    x = audio[:, :, None]
    for (kernel, bias, scale, shift), stride in zip(layers, strides, strict=True):
        with full_precision(x.dtype):
            x = strided_conv(x, kernel.astype(x.dtype), stride=stride)
        x = x if bias is None else x + bias.astype(x.dtype)
        x = gelu(layer_norm(x, scale, shift, epsilon=OUTER_EPSILON))
    return x


def zero_padding(x, mask):
    """x[B, T, D] with zeros where mask bool[B, T] is False."""
    return jnp.where(mask[:, :, None], x, jnp.zeros((), x.dtype))


def masked_mean(x, mask):
    """Mean over real frames, float32[B, D], of x[B, T, D] and mask bool[B, T]; zero without any."""
    total = ordered_sum(zero_padding(x.astype(jnp.float32), mask))
    return total / jnp.maximum(mask.sum(1, keepdims=True), 1)


def _initial_tokens(key, shape, dtype):
    """N(0, 1), the first token zero, as upstream starts them."""
    return jax.random.normal(key, shape, dtype).at[0].set(0.0)
