"""Starting values for the waveform stem that make it hear like a log-mel filterbank.

The first convolution becomes a bank of Gabor filters in four phases: GELU rectifies each phase, and
their sum is the band's envelope. A channel norm follows, which would throw the level away; a few
constant channels keep it, because what the norm divides them by is the level. The later
convolutions then learn, by regression on given audio, to put log-mel values into the stem's
output. Small corpora gain the most: nothing of the stem is left to learn from labels.

Shapes: B rows, N samples, T frames, K taps, C channels, M mel bands, Q mel frames per frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig, LocalEncoder
from c2ser_jax.models.log_mel import SAMPLE_RATE

WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
TRANSFORM_SAMPLES = 512


@dataclass(frozen=True)
class FrontEndConfig:
    """The filterbank, and how the stem learns to be a log-mel analysis before any training.

    `constants` channels of the first convolution carry a constant (it needs `conv_bias`); the rest
    are bands of four phases between `low_hz` and `high_hz`, evenly spaced on the mel scale.
    `steps` of Adam regress `mel_bands` log-mel bands on `rows` crops of `seconds` each; 0 leaves
    the later convolutions as they are drawn.
    """

    constants: int = 4
    low_hz: float = 60.0
    high_hz: float = 7600.0
    first_scale: float = 4.0
    """Scale of the first norm: how far into GELU's linear part the bands reach."""
    steps: int = 300
    rows: int = 32
    seconds: float = 2.0
    gain_db: float = 6.0
    learning_rate: float = 3e-3
    mel_bands: int = 48
    floor: float = 1e-2
    """Added to the mel powers of unit-variance audio before the logarithm."""

    def __post_init__(self):
        if not 0.0 < self.low_hz < self.high_hz <= 8000.0:
            raise UserError(
                f"front_end bands go from low_hz {self.low_hz} to high_hz {self.high_hz}; "
                "give 0 < low_hz < high_hz <= 8000"
            )
        if self.constants < 0 or self.steps < 0:
            raise UserError(
                f"front_end.constants is {self.constants} and front_end.steps is {self.steps}; "
                "neither may be negative"
            )


def to_mel(hertz):
    """Frequencies in Hz on the mel scale (O'Shaughnessy: 2595 log10(1 + f / 700))."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0)


def to_hertz(mel):
    """The inverse of `to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)


def gabor_filters(layer: ConvLayer, cfg: FrontEndConfig) -> tuple[np.ndarray, np.ndarray]:
    """First convolution: (kernel float32[K, 1, C], bias float32[C]).

    Channels 4b … 4b + 3 are band b as cos, -cos, sin, -sin under a Hann window that is as short as
    the band's width asks, with a rise of 3 dB per octave above 300 Hz; the last `constants`
    channels have no kernel and a bias between 0.1 and 1 of alternating sign.

    Raises:
      UserError: the channels leave no whole number of bands.
    """
    bands, rest = divmod(layer.channels - cfg.constants, 4)
    if bands < 1 or rest:
        raise UserError(
            f"the first convolution has {layer.channels} channels, {cfg.constants} of them "
            "constant: give 4 channels per band beside the constants"
        )
    edges = to_hertz(np.linspace(to_mel(cfg.low_hz), to_mel(cfg.high_hz), bands + 2))
    seconds = (np.arange(layer.kernel) - (layer.kernel - 1) / 2) / SAMPLE_RATE
    kernel = np.zeros((layer.kernel, 1, layer.channels))
    for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        support = min(layer.kernel / SAMPLE_RATE, 4.0 / (high - low))
        window = np.where(
            np.abs(seconds) <= support / 2, 0.5 + 0.5 * np.cos(2 * np.pi * seconds / support), 0.0
        )
        cosine = window * np.cos(2 * np.pi * centre * seconds)
        cosine -= window * cosine.sum() / window.sum()
        sine = window * np.sin(2 * np.pi * centre * seconds)
        gain = np.sqrt((centre + 300.0) / 1000.0 / np.square(cosine).sum())
        for phase, wave in enumerate((cosine, -cosine, sine, -sine)):
            kernel[:, 0, 4 * band + phase] = gain * wave
    bias = np.zeros(layer.channels)
    if cfg.constants:
        signs = np.resize([1.0, -1.0], cfg.constants)
        bias[-cfg.constants :] = np.geomspace(0.1, 1.0, cfg.constants) * signs
    return kernel.astype(np.float32), bias.astype(np.float32)


def mel_matrix(bands: int, cfg: FrontEndConfig) -> np.ndarray:
    """Triangular filters over the power spectrum, each summing to one: float32[257, M]."""
    edges = to_hertz(np.linspace(to_mel(cfg.low_hz), to_mel(cfg.high_hz), bands + 2))
    bins = np.arange(TRANSFORM_SAMPLES // 2 + 1) * SAMPLE_RATE / TRANSFORM_SAMPLES
    rise = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
    weights = np.maximum(np.minimum(rise, fall), 0.0)
    # A band narrower than a bin may hold none: it takes its nearest.
    empty = weights.sum(0) == 0.0
    nearest = np.abs(bins[:, None] - edges[None, 1:-1]).argmin(0)
    weights[nearest[empty], np.flatnonzero(empty)] = 1.0
    return (weights / weights.sum(0)).astype(np.float32)


def log_mel(audio, encoder: Emotion2VecConfig, cfg: FrontEndConfig):
    """What the stem shall know of float32[B, N]: float32[B, T, Q * M].

    The log-mel frames (25 ms every 10 ms) in the middle of each frame's receptive field, as many as
    fill its hop.
    """
    hop, frames = encoder.hop_samples, encoder.frames(audio.shape[1])
    inside = max(1, hop // HOP_SAMPLES)
    first = (encoder.receptive_samples - WINDOW_SAMPLES - (inside - 1) * HOP_SAMPLES) // 2
    places = (
        first
        + np.arange(frames)[:, None, None] * hop
        + np.arange(inside)[:, None] * HOP_SAMPLES
        + np.arange(WINDOW_SAMPLES)
    )
    pieces = audio[:, np.clip(places, 0, audio.shape[1] - 1)]
    window = np.hanning(WINDOW_SAMPLES).astype(np.float32)
    power = jnp.square(jnp.abs(jnp.fft.rfft(pieces * window, TRANSFORM_SAMPLES)))
    level = jnp.log(power @ mel_matrix(cfg.mel_bands, cfg) + cfg.floor)
    return level.reshape(*level.shape[:2], -1)


def initial_front_end(
    encoder: Emotion2VecConfig, cfg: FrontEndConfig, audio: Sequence[np.ndarray], *, seed: int
) -> dict[str, Any]:
    """Values for "local_encoder" as nested dicts of float32 arrays, a pure function of all given.

    Args:
      encoder: whose stem it is; constant channels need its `conv_bias`.
      cfg: the filterbank and the regression.
      audio: 16 kHz mono float32[N] recordings to hear, no labels; crops of them are what the
        later convolutions are fitted on. Never the test speaker's. Unused when cfg.steps is 0.
      seed: of the drawn parameters and the crops.

    Raises:
      UserError: the config can't hold the filterbank, or there is no audio to fit on.
    """
    if cfg.constants and not encoder.conv_bias:
        raise UserError(
            "front_end.constants needs biases: set encoder.conv_bias true, or constants to 0"
        )
    if cfg.steps and not len(audio):
        raise UserError("the front end has no audio to be fitted on; give some, or set steps to 0")
    stem = LocalEncoder(encoder)
    samples = max(round(cfg.seconds * SAMPLE_RATE), encoder.receptive_samples)
    params = meta.unbox(stem.init(jax.random.key(seed), jnp.zeros((1, samples)))["params"])
    kernel, bias = gabor_filters(encoder.conv_layers[0], cfg)
    params["conv_0"] = {"kernel": kernel, **({"bias": bias} if encoder.conv_bias else {})}
    params["norm_0"] = {
        "scale": np.full(len(bias), cfg.first_scale, np.float32),
        "bias": np.zeros(len(bias), np.float32),
    }
    if cfg.steps:
        params = _fit(stem, params, encoder, cfg, audio, samples, np.random.default_rng(seed))
    return jax.tree.map(np.asarray, params)


def _fit(stem, params, encoder, cfg, audio, samples, rng) -> dict[str, Any]:
    """The parameters after regressing normalised log-mel values; the filters stay as they are."""
    filters = {"conv_0": params.pop("conv_0")}
    target = jax.jit(lambda audio: log_mel(audio, encoder, cfg))
    example = target(_crops(audio, cfg, samples, rng))
    mean, deviation = example.mean((0, 1)), example.std((0, 1)) + 1e-3
    width = encoder.conv_layers[-1].channels
    readout = {
        "kernel": jnp.zeros((width, example.shape[-1])),
        "bias": jnp.zeros(example.shape[-1]),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(cfg.learning_rate, cfg.steps))

    def loss(values, audio):
        frames = stem.apply({"params": {**values["stem"], **filters}}, audio)
        wanted = (log_mel(audio, encoder, cfg) - mean) / deviation
        return jnp.square(
            frames @ values["readout"]["kernel"] + values["readout"]["bias"] - wanted
        ).mean()

    @jax.jit
    def step(values, slots, audio):
        gradient = jax.grad(loss)(values, audio)
        updates, slots = optimizer.update(gradient, slots)
        return optax.apply_updates(values, updates), slots

    values: Mapping[str, Any] = {"stem": params, "readout": readout}
    slots = optimizer.init(values)
    for _ in range(cfg.steps):
        values, slots = step(values, slots, _crops(audio, cfg, samples, rng))
    return {**values["stem"], **filters}


def _crops(audio, cfg: FrontEndConfig, samples: int, rng) -> np.ndarray:
    """float32[B, N]: pieces of recordings of unit variance, at random levels around it."""
    out = np.zeros((cfg.rows, samples), np.float32)
    for row, place in zip(out, rng.integers(len(audio), size=cfg.rows), strict=True):
        whole = audio[place]
        start = rng.integers(max(1, len(whole) - samples + 1))
        piece = whole[start : start + samples]
        gain = 10 ** (cfg.gain_db * rng.uniform(-1, 1) / 20)
        row[: len(piece)] = gain * (piece - whole.mean()) / (whole.std() + 1e-6)
    return out
