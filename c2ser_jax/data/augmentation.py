"""Waveform augmentation in numpy, drawn from a key (seed, step, row), so resuming repeats it.

Shapes: N samples at 16 kHz.
"""

from dataclasses import dataclass

import numpy as np
import soxr

from c2ser_jax.errors import UserError


@dataclass(frozen=True)
class AugmentConfig:
    """Each part is off at its default; probabilities are per row and step.

    `gain_db`: uniform in [-gain_db, gain_db]. `noise_snr_db`: (low, high) signal-to-noise ratio of
    added noise of random colour. `speed`: (slow, fast) playing-speed factors, pitch included.
    `mix_snr_db`: (low, high) level of another utterance of the batch mixed in, over half at most.
    """

    gain_db: float = 0.0
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (10.0, 30.0)
    speed_probability: float = 0.0
    speed: tuple[float, float] = (0.9, 1.1)
    mix_probability: float = 0.0
    mix_snr_db: tuple[float, float] = (0.0, 10.0)

    def __post_init__(self):
        for name in ("noise_probability", "speed_probability", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is a share from 0 to 1: {getattr(self, name)}")
        for name in ("noise_snr_db", "speed", "mix_snr_db"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"augment.{name} must be (low, high), got ({low}, {high})")
        if self.speed[0] <= 0.25 or self.speed[1] >= 4:
            raise UserError(f"augment.speed must lie between 0.25 and 4, got {self.speed}")
        if self.gain_db < 0:
            raise UserError(f"augment.gain_db must not be negative, got {self.gain_db}")

    @property
    def active(self) -> bool:
        """Whether anything is switched on."""
        shares = self.noise_probability + self.speed_probability + self.mix_probability
        return self.gain_db > 0 or shares > 0


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """Plays float32[N] `factor` times as fast (pitch moves too): float32[about N / factor]."""
    percent = max(1, round(100 * factor))
    if percent == 100:
        return audio
    return soxr.resample(audio, percent, 100, quality="MQ")


def add_noise(
    audio: np.ndarray, snr_db: float, colour: float, rng: np.random.Generator
) -> np.ndarray:
    """Adds noise whose power falls by f^-colour (0 white, 1 pink, 2 brown), float32[N].

    The spectrum is drawn, and not filtered: one transform in place of two.
    """
    from scipy import fft  # slow to import, and most runs add no noise

    size = fft.next_fast_len(len(audio), real=True) or len(audio)
    bins = size // 2 + 1
    spectrum = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    if colour:
        frequency = np.maximum(np.arange(bins, dtype=np.float32), 1)
        spectrum = spectrum * frequency ** np.float32(-colour / 2)
    noise = np.asarray(fft.irfft(spectrum, size))[: len(audio)]
    return mix(audio, noise, snr_db)


def mix(audio: np.ndarray, other: np.ndarray, snr_db: float) -> np.ndarray:
    """Adds `other` (same length) scaled so that audio's power is `snr_db` above it."""
    power, other_power = np.mean(np.square(audio)), np.mean(np.square(other))
    if power <= 0 or other_power <= 0:
        return audio
    scale = np.sqrt(power / other_power / 10 ** (snr_db / 10))
    return (audio + scale * other).astype(np.float32)


def augment(audio: np.ndarray, cfg: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Applies speed, noise and gain to float32[N]; the same draws are made whatever is on."""
    draws = rng.random(6)
    if draws[0] < cfg.speed_probability:
        audio = change_speed(audio, cfg.speed[0] + draws[1] * (cfg.speed[1] - cfg.speed[0]))
    if draws[2] < cfg.noise_probability:
        low, high = cfg.noise_snr_db
        audio = add_noise(audio, low + draws[3] * (high - low), 2 * draws[4], rng)
    if cfg.gain_db:
        audio = audio * np.float32(10 ** (cfg.gain_db * (2 * draws[5] - 1) / 20))
    return audio


def mix_piece(
    audio: np.ndarray, other: np.ndarray, cfg: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Mixes a piece of another utterance into float32[N], over at most half of it.

    Source: utterance mixing of WavLM (arXiv 2110.13900, section 3.2).
    """
    draws = rng.random(4)
    length = int(min(len(audio) / 2, len(other)) * draws[0])
    if length < 1:
        return audio
    place = int(draws[1] * (len(audio) - length + 1))
    start = int(draws[2] * (len(other) - length + 1))
    low, high = cfg.mix_snr_db
    mixed = audio.copy()
    piece = mixed[place : place + length]
    piece[:] = mix(piece, other[start : start + length], low + draws[3] * (high - low))
    return mixed
