"""Whisper's log-mel features on the device, each utterance as if it stood alone.

Shapes: B batch, N samples, T frames, M mel bins, F frequencies, W samples of one window.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint

from c2ser_jax.errors import UserError
from c2ser_jax.models.layers import full_precision

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
THIRTY_SECONDS = 30 * SAMPLE_RATE


def log_mel(audio, audio_samples, *, mel_bins: int = 80, pad_to_30s: bool = False):
    """Log-mel features of a batch of 16 kHz waveforms.

    Centred windows of 25 ms every 10 ms, periodic Hann; the waveform is reflected at both of its
    real ends; power, mel filters, log10 not below 1e-10 nor 8 below the utterance's own maximum,
    (x + 4) / 4. Source: openai/whisper `audio.py`, and C2SER's `compute_log_mel_spectrogram`,
    which doesn't pad.

    Args:
      audio: float32[B, N]; what lies behind a row's real length has no effect.
      audio_samples: int32[B], real lengths.
      mel_bins: 80, or 128 for large-v3.
      pad_to_30s: appends silence up to 30 s first, as Hugging Face's feature extractor does; every
        row then has 3000 frames, all of which count as real.

    Returns:
      features float32[B, T, M], zero behind the real frames, and the number of frames int32[B]:
      one per whole 160 samples. T = N // 160, or 3000 with `pad_to_30s`.

    Raises:
      UserError: `pad_to_30s` with more than 30 s.
    """
    B, N = audio.shape
    lengths = audio_samples
    if pad_to_30s:
        if N > THIRTY_SECONDS:
            raise UserError(
                f"the audio has {N / SAMPLE_RATE:.2f} s but pad_to_30s takes at most 30 s: cut it "
                "into windows first"
            )
        is_real = jnp.arange(N) < audio_samples[:, None]
        audio = jnp.pad(jnp.where(is_real, audio, 0.0), ((0, 0), (0, THIRTY_SECONDS - N)))
        lengths = jnp.full((B,), THIRTY_SECONDS, jnp.int32)
    frames = lengths // HOP_SAMPLES
    padded = _reflected(audio.astype(jnp.float32), lengths)
    power = _power(_windows(padded, audio.shape[1] // HOP_SAMPLES))
    with full_precision(jnp.float32):
        mel = jnp.dot(power.reshape(-1, power.shape[-1]), mel_filters(mel_bins).T)
    mel = mel.reshape(*power.shape[:2], mel_bins)
    x = jnp.log10(jnp.maximum(mel, 1e-10))
    mask = (jnp.arange(x.shape[1]) < frames[:, None])[:, :, None]
    loudest = jnp.max(x, axis=(1, 2), keepdims=True, where=mask, initial=-10.0)
    x = jnp.where(mask, (jnp.maximum(x, loudest - 8.0) + 4.0) / 4.0, 0.0)
    return with_logical_constraint(x, ("batch", "time", "channels_in")), frames


def _reflected(audio, audio_samples):
    """float32[B, N] -> float32[B, N + W], row b mirrored at sample 0 and at its last real one.

    An index beyond an end walks back from it, and forth again where a row is shorter than that.
    """
    last = jnp.maximum(audio_samples - 1, 0)[:, None]
    half = WINDOW_SAMPLES // 2
    steps = jnp.abs(jnp.arange(-half, audio.shape[1] + half))[None] % jnp.maximum(2 * last, 1)
    mirrored = jnp.take_along_axis(audio, jnp.minimum(steps, 2 * last - steps) * (last > 0), 1)
    return jnp.where(audio_samples[:, None] > 0, mirrored, 0.0)


def _windows(padded, frames: int):
    """The first T windows float32[B, T, W] of float32[B, N + W], under a periodic Hann window."""
    blocks = -(-WINDOW_SAMPLES // HOP_SAMPLES)
    used = (frames + blocks - 1) * HOP_SAMPLES
    padded = jnp.pad(padded, ((0, 0), (0, max(0, used - padded.shape[1]))))[:, :used]
    hops = padded.reshape(padded.shape[0], -1, HOP_SAMPLES)
    windows = jnp.concatenate([hops[:, i : i + frames] for i in range(blocks)], -1)
    turns = np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * turns)
    return windows[..., :WINDOW_SAMPLES] * hann.astype(np.float32)


def _power(windows):
    """Power spectra float32[B, T, F] of float32[B, T, W].

    XLA's partitioner gathers the operand of a Fourier transform on every device, so on a mesh each
    device is told to transform its own rows.
    """

    def power(windows):
        spectrum = jnp.fft.rfft(windows)
        return jnp.square(spectrum.real) + jnp.square(spectrum.imag)

    mesh = jax.sharding.get_abstract_mesh()
    rows = logical_to_mesh_axes(("batch",)) if mesh.size > 1 else None
    names = rows[0] if rows else None
    if names is None:
        return power(windows)
    names = (names,) if isinstance(names, str) else names
    if windows.shape[0] % math.prod(mesh.shape[name] for name in names):
        return power(windows)
    return jax.shard_map(power, in_specs=rows, out_specs=rows)(windows)


@functools.cache
def mel_filters(mel_bins: int) -> np.ndarray:
    """Triangles float32[M, F] between 0 and 8 kHz on Slaney's scale, each of unit area.

    The scale is linear below 1 kHz, 15 mel there, and logarithmic above with 27 steps per factor
    6.4 (M. Slaney, Auditory Toolbox, 1998; librosa's `filters.mel`).
    """
    top = _to_mel(np.float64(SAMPLE_RATE / 2))
    edges = _to_hertz(np.linspace(0.0, top, mel_bins + 2))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, WINDOW_SAMPLES // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (high - low)).astype(np.float32)


_LINEAR_HERTZ, _KNEE_HERTZ, _KNEE_MEL = 200.0 / 3.0, 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _to_mel(hertz):
    above = _KNEE_MEL + np.log(np.maximum(hertz, _KNEE_HERTZ) / _KNEE_HERTZ) / _LOG_STEP
    return np.where(hertz < _KNEE_HERTZ, hertz / _LINEAR_HERTZ, above)


def _to_hertz(mel):
    above = _KNEE_HERTZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * _LINEAR_HERTZ, above)
