"""data2vec 2.0 pretraining around the emotion2vec encoder: student, decoder, teacher, targets.

The student sees the kept frames of C differently masked clones of every utterance and predicts,
for the masked ones, what the teacher (a moving average of the student) makes of the whole
utterance. Follows fairseq's `examples/data2vec/models/data2vec2.py`; every row gives the same
terms in any batch.

Shapes: B utterances, C clones, R = B * C rows (clones of an utterance adjacent), N samples,
T frames, K kept frames, E extra tokens, D width, L layers.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from c2ser_jax.errors import UserError
from c2ser_jax.models import masking
from c2ser_jax.models.emotion2vec import (
    Conv,
    Emotion2Vec,
    Emotion2VecConfig,
    conv_norm_gelu,
    masked_mean,
    zero_padding,
)
from c2ser_jax.models.layers import TORCH_UNIFORM, Dense, dropout, layer_norm

TEACHER_PATHS = r"encoder/(?!local_encoder/|project_features/).*"
"""The parameters a teacher has: all of the encoder behind the student's local features."""


@dataclasses.dataclass(frozen=True)
class Data2VecConfig:
    """How the student is masked and what it predicts; how its teacher moves is the loop's matter.

    The defaults are emotion2vec's pretraining (FunASR's template). `mask_sampler` "block" masks an
    exact share of every row, "span" a random one (`models/masking.py`). `target_norm` is applied
    to each teacher layer before the top ones are averaged: "instance" over time, "layer" over
    channels. `utterance_target` "pooled" pools the layers over time before a norm over time could
    cancel the mean, "published" pools the frame targets (exactly zero under instance norm).
    `pooled_pass` says where the vector of the category loss comes from: the student's kept frames,
    averaged over clones ("masked", free), or one more pass over all frames ("unmasked"). `ema_*`
    say how the teacher moved where converted weights were made; a run's own pace is its loop's.
    """

    clone_batch: int = 8
    mask_sampler: Literal["block", "span"] = "block"
    mask_prob: float = 0.5
    mask_length: int = 5
    mask_prob_adjust: float = 0.05
    mask_dropout: float = 0.0
    mask_noise_std: float = 0.01
    average_top_k_layers: int = 8
    target_norm: Literal["instance", "layer"] = "instance"
    utterance_prediction: Literal["last_token", "mean_of_tokens"] = "last_token"
    utterance_target: Literal["pooled", "published"] = "pooled"
    pooled_pass: Literal["masked", "unmasked"] = "masked"
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_kernel: int = 7
    decoder_groups: int = 16
    decoder_residual: bool = True
    decoder_input_dropout: float = 0.1

    def __post_init__(self):
        """Raises UserError for a value that can't work."""
        for wrong, sentence in self._complaints():
            if wrong:
                raise UserError(sentence)

    def _complaints(self):
        for name in ("clone_batch", "mask_length", "average_top_k_layers", "decoder_width",
                     "decoder_depth", "decoder_groups"):  # fmt: skip
            value = getattr(self, name)
            yield value < 1, f"{name} is {value}: it must be at least 1"
        for name in ("mask_dropout", "decoder_input_dropout"):
            value = getattr(self, name)
            yield not 0.0 <= value < 1.0, f"{name} is {value}: it must lie in [0, 1)"
        yield not 0.0 < self.mask_prob < 1.0, f"mask_prob is {self.mask_prob}: give 0 < p < 1"
        yield (
            self.decoder_kernel % 2 == 0,
            f"decoder_kernel is {self.decoder_kernel}: it must be odd",
        )
        yield (
            self.decoder_width % self.decoder_groups != 0,
            f"decoder_width {self.decoder_width} is not a multiple of decoder_groups "
            f"{self.decoder_groups}",
        )
        for name, choices in (
            ("mask_sampler", ("block", "span")),
            ("target_norm", ("instance", "layer")),
            ("utterance_prediction", ("last_token", "mean_of_tokens")),
            ("utterance_target", ("pooled", "published")),
            ("pooled_pass", ("masked", "unmasked")),
        ):
            value = getattr(self, name)
            yield value not in choices, f"{name} is {value!r}: use one of {', '.join(choices)}"

    def kept_frames(self, frames: int) -> int:
        """K for batches of `frames` frames: enough for every row that `draw_masks` masks."""
        if self.mask_sampler == "span":
            return frames
        return masking.kept_frames(frames, self.mask_prob)


@flax.struct.dataclass
class StudentOutput:
    """What the student made of a masked batch.

    local_features dtype[B, T, D] and frame_mask bool[B, T] (True = real) are the teacher's input;
    predictions dtype[R, T, D] the decoder's output; masked bool[R, T], True where a real frame was
    hidden; tokens dtype[R, E, D]; utterance dtype[R, D], the utterance prediction; pooled
    float32[B, D], the vector of the category loss; layers None or the intermediates `prenet_out`,
    `encoder_out` dtype[R, E + K, D], `kept_indices` int32[R, K], `decoder_input` dtype[R, T, D].
    """

    local_features: jax.Array
    frame_mask: jax.Array
    predictions: jax.Array
    masked: jax.Array
    tokens: jax.Array
    utterance: jax.Array
    pooled: jax.Array
    layers: dict[str, jax.Array] | None = None


class Decoder(nn.Module):
    """Grouped convolutions and a linear map back to the encoder's width."""

    cfg: Data2VecConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, mask):
        """Maps dtype[R, T, D] and mask bool[R, T] (True = real) to dtype[R, T, D]."""
        cfg, D = self.cfg, x.shape[-1]
        for i in range(cfg.decoder_depth):
            shape = (cfg.decoder_kernel, x.shape[-1] // cfg.decoder_groups, cfg.decoder_width)
            kernel, bias = Conv(shape, "channels", TORCH_UNIFORM, True, name=f"conv_{i}")()
            y = conv_norm_gelu(zero_padding(x, mask), kernel, bias, groups=cfg.decoder_groups)
            x = x + y if cfg.decoder_residual and x.shape == y.shape else y
        dtype = jnp.dtype(self.dtype)
        return Dense(D, ("channels", "width"), dtype, TORCH_UNIFORM, name="proj")(x)


class Data2Vec(nn.Module):
    """Encoder and decoder; `student` and `teacher` are called with different parameters."""

    cfg: Emotion2VecConfig
    pretraining: Data2VecConfig

    def setup(self):
        """Names the parts as the parameter tree does; UserError when the two configs disagree."""
        width, groups = self.cfg.width, self.pretraining.decoder_groups
        if width % groups != 0:
            raise UserError(f"width {width} is not a multiple of decoder_groups {groups}")
        self.encoder = Emotion2Vec(self.cfg)
        self.decoder = Decoder(self.pretraining, self.cfg.dtype)

    def __call__(self, audio, audio_samples, masked, **options):
        """The student: what `init` traces."""
        return self.student(audio, audio_samples, masked, **options)

    def student(
        self, audio, audio_samples, masked, *, audio_statistics=None, train: bool = False,
        kept_frames: int | None = None, return_layers: bool = False,
    ):  # fmt: skip
        """Encodes the kept frames of every clone and predicts all frames.

        Args:
          audio, audio_samples, audio_statistics, train: as `Emotion2Vec`.
          masked: bool[R, T], True = hidden, from `draw_masks` or given; R = C * B decides C.
          kept_frames: K; None: what the config's sampler needs. Kept frames beyond K are lost.
          return_layers: also returns the intermediates.

        Returns:
          StudentOutput. Noise on masked frames draws from the rng collection "noise", dropout
          from "dropout".
        """
        pre, E = self.pretraining, self.cfg.extra_tokens
        local, frame_mask, _ = self.encoder.local_features(audio, audio_samples, audio_statistics)
        B, T, _ = local.shape
        clones = masked.shape[0] // B
        K = pre.kept_frames(T) if kept_frames is None else kept_frames
        x, real = clone(local, clones), clone(frame_mask, clones)
        masked, kept = masked & real, real & ~masked
        x = x + self.encoder.positions(zero_padding(x, ~masked), real)
        x, kept_indices, kept_mask = gather_kept(x, kept, K)
        tokens, frames, layers = self.encoder.contextualize(
            x, kept_mask, frame_indices=kept_indices, train=train,
            collect=("prenet_out",) if return_layers else (),
        )  # fmt: skip
        encoded = jnp.concatenate([tokens, frames], 1)
        drops = train and pre.decoder_input_dropout > 0.0
        key = self.make_rng("dropout") if drops else None
        shown = dropout(frames, pre.decoder_input_dropout, key)
        noise = None
        if pre.mask_noise_std > 0.0:
            noise = jax.random.normal(self.make_rng("noise"), (*masked.shape, x.shape[-1]), x.dtype)
            noise = noise * pre.mask_noise_std
        decoder_input = scatter_kept(shown, kept, masked, noise)
        if return_layers:
            layers.update(
                encoder_out=encoded, kept_indices=kept_indices, decoder_input=decoder_input
            )
        return StudentOutput(
            local_features=local,
            frame_mask=frame_mask,
            predictions=self.decoder(decoder_input, real),
            masked=masked,
            tokens=encoded[:, :E],
            utterance=utterance_prediction(tokens, pre.utterance_prediction),
            pooled=self._pooled(local, frame_mask, frames, kept_mask, train),
            layers=layers or None,
        )

    def _pooled(self, local, frame_mask, frames, kept_mask, train):
        """Vector of the category loss, float32[B, D]."""
        if self.pretraining.pooled_pass == "unmasked":
            x = local + self.encoder.positions(local, frame_mask)
            _, frames, _ = self.encoder.contextualize(x, frame_mask, train=train)
            return masked_mean(frames, frame_mask)
        pooled = masked_mean(frames, kept_mask)
        return pooled.reshape(local.shape[0], -1, pooled.shape[-1]).mean(1)

    def teacher(self, local_features, frame_mask):
        """The top layers' perceptron outputs dtype[k, B, T, D], tokens left out, no gradient.

        Call with the teacher's parameters (paths `TEACHER_PATHS`) and the student's local_features
        dtype[B, T, D] and frame_mask bool[B, T]. k = average_top_k_layers, or all there are.
        """
        local = lax.stop_gradient(local_features)
        x = local + self.encoder.positions(local, frame_mask)
        _, _, layers = self.encoder.contextualize(x, frame_mask, collect=("layer_results",))
        results = layers["layer_results"][-self.pretraining.average_top_k_layers :]
        return lax.stop_gradient(results[:, :, self.cfg.extra_tokens :])


def draw_masks(keys, frames, length: int, cfg: Data2VecConfig):
    """Masks bool[R, length] for one key per row and frames int32[R], by the config's sampler."""
    if cfg.mask_sampler == "span":
        return masking.span_masks(
            keys[0], frames, length=length, mask_prob=cfg.mask_prob, mask_length=cfg.mask_length,
            mask_dropout=cfg.mask_dropout, require_same_masks=False,
        )  # fmt: skip

    def one_row(key, count):
        return masking.block_mask(
            key, count, length=length, mask_prob=cfg.mask_prob, mask_length=cfg.mask_length,
            mask_prob_adjust=cfg.mask_prob_adjust, mask_dropout=cfg.mask_dropout,
        )  # fmt: skip

    return jax.vmap(one_row)(keys, frames)


def frame_targets(layer_results, frame_mask, *, norm: str):
    """What the student regresses to, float32[B, T, D]; zero on padding.

    layer_results [k, B, T, D] are each normalised over real time ("instance": biased variance,
    1e-5) or over channels ("layer"), then averaged over k.
    """
    x = layer_results.astype(jnp.float32)
    real = frame_mask[:, :, None]
    if norm == "layer":
        return jnp.where(real, layer_norm(x, epsilon=1e-5).mean(0), 0.0)
    count = jnp.maximum(frame_mask.sum(1), 1)[:, None, None]
    x = x - jnp.where(real, x, 0.0).sum(2, keepdims=True) / count
    variance = jnp.square(jnp.where(real, x, 0.0)).sum(2, keepdims=True) / count
    return jnp.where(real, (x * lax.rsqrt(variance + 1e-5)).mean(0), 0.0)


def utterance_targets(layer_results, frame_mask, *, kind: str, norm: str):
    """What the tokens regress to, float32[B, D].

    "pooled": each layer's mean over real time, layer-normed over channels, averaged over layers.
    "published": the mean over real time of `frame_targets`.
    """
    if kind == "published":
        return masked_mean(frame_targets(layer_results, frame_mask, norm=norm), frame_mask)
    pooled = jax.vmap(masked_mean, (0, None))(layer_results, frame_mask)
    return layer_norm(pooled, epsilon=1e-5).mean(0)


def utterance_prediction(tokens, kind: str):
    """dtype[R, D] from tokens dtype[R, E, D]: the last one, or the mean of all."""
    return tokens[:, -1] if kind == "last_token" else tokens.mean(1)


def clone(x, clones: int):
    """Repeats every row, copies adjacent: [B, ...] -> [B * clones, ...]."""
    return jnp.broadcast_to(x[:, None], (x.shape[0], clones, *x.shape[1:])).reshape(
        -1, *x.shape[1:]
    )


def gather_kept(x, kept, size: int):
    """Moves the kept frames of each row to the front, in time order.

    x[R, T, D], kept bool[R, T] -> (x[R, size, D], their indices int32[R, size], bool[R, size] True
    where such a frame exists).
    """
    order = jnp.argsort(~kept, axis=1, stable=True)[:, :size]
    mask = jnp.arange(size) < kept.sum(1, keepdims=True)
    return jnp.take_along_axis(x, order[:, :, None], 1), order, mask


def scatter_kept(x, kept, masked, noise=None):
    """Puts gathered frames back at their times, `noise` (or zero) on masked frames, else zero.

    x[R, K, D], kept and masked bool[R, T], noise [R, T, D] -> [R, T, D].
    """
    ranks = jnp.clip(jnp.cumsum(kept, 1) - 1, 0, x.shape[1] - 1)
    placed = zero_padding(jnp.take_along_axis(x, ranks[:, :, None], 1), kept)
    return placed if noise is None else placed + zero_padding(noise, masked)
