"""A source-filter synthesiser of made-up words: glottal pulses and noise through four formants.

Glottal pulses and noise (source) pass four formant resonators (filter, as in Klatt 1980). Words are
syllables of one consonant and one vowel. Samples are multiples of 2^-15, the same on every machine.

Shapes: N samples at 16 kHz, R control steps of 5 ms, P pieces of 20 ms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from c2ser_jax.data.audio import SAMPLE_RATE

_STEP = 80  # samples per control step
_PIECE = 320  # samples that share one set of resonators


# F1, F2, F3 in Hz of an average vocal tract; consonants give targets for the transitions.
_VOWELS = {
    "a": (730, 1200, 2500),
    "e": (500, 1850, 2550),
    "i": (290, 2250, 2950),
    "o": (480, 880, 2450),
    "u": (320, 800, 2300),
}
# (F1, F2, F3), seconds, voicing, frication, burst
_CONSONANTS = {
    "m": ((260, 1050, 2200), 0.07, 0.45, 0.0, 0.0),
    "n": ((260, 1500, 2500), 0.06, 0.45, 0.0, 0.0),
    "l": ((340, 1250, 2700), 0.06, 0.70, 0.0, 0.0),
    "w": ((300, 700, 2200), 0.06, 0.60, 0.0, 0.0),
    "s": ((320, 1600, 2600), 0.10, 0.00, 0.30, 0.0),
    "f": ((320, 1100, 2300), 0.08, 0.00, 0.12, 0.0),
    "b": ((250, 900, 2200), 0.06, 0.10, 0.0, 0.4),
    "d": ((250, 1700, 2600), 0.06, 0.10, 0.0, 0.5),
    "k": ((300, 1900, 2400), 0.08, 0.00, 0.0, 0.8),
    "t": ((300, 1750, 2650), 0.08, 0.00, 0.0, 0.9),
}


@dataclass(frozen=True)
class Prosody:
    """One emotion's setting, relative to neutral speech of the same speaker.

    Pitch level and final fall in semitones, range and tempo as factors, energy in dB, breath as a
    share of noise, tilt as a one-pole low-pass coefficient (higher is darker), shake as cycle-to-
    cycle pitch noise.
    """

    level: float = 0.0
    range: float = 1.0
    fall: float = 2.0
    tempo: float = 1.0
    energy: float = 0.0
    breath: float = 0.0
    tilt: float = 0.0
    shake: float = 0.0


@dataclass(frozen=True)
class Voice:
    """A speaker: pitch in Hz, formant scale, and habits in the units of `Prosody`."""

    pitch: float
    tract: float
    habit: Prosody


def say(words: Sequence[str], voice: Voice, mood: Prosody, rng: np.random.Generator) -> np.ndarray:
    """One utterance of words such as "mana" by a voice in a mood: float32[N] in [-1, 1)."""
    from scipy import signal  # seconds to import, and every command reads the configs of speech

    tempo = max(0.4, mood.tempo * voice.habit.tempo)
    formants, voiced, friction = _tracks(words, tempo, rng)
    steps = len(voiced)
    samples = steps * _STEP
    at = np.arange(samples) / _STEP

    place = np.linspace(0.0, 1.0, steps)
    accents = np.interp(place, np.linspace(0, 1, 2 * len(words) + 1), _accents(len(words), rng))
    swing = 2.5 * mood.range * voice.habit.range * accents
    fall = (mood.fall + voice.habit.fall) * (0.5 - place)
    shake = (mood.shake + voice.habit.shake) * 12 * rng.uniform(-1, 1, steps)
    pitch = voice.pitch * 2 ** ((mood.level + swing + fall + shake) / 12)

    phase = np.cumsum(np.interp(at, np.arange(steps), pitch)) / SAMPLE_RATE
    pulses = _glottal_pulses(phase % 1.0)
    breath = float(np.clip(mood.breath + voice.habit.breath, 0.005, 0.5))
    noise = rng.random(samples) * 2 - 1
    gate = np.interp(at, np.arange(steps), voiced)
    source = gate * ((1 - breath) * pulses + 0.35 * breath * noise)
    tilt = float(np.clip(mood.tilt + voice.habit.tilt, 0.0, 0.92))
    source = np.asarray(signal.lfilter([1 - tilt], [1.0, -tilt], source))

    hiss = np.diff(noise, prepend=0.0) * np.interp(at, np.arange(steps), friction)
    sound = _resonate(source, formants * voice.tract) + 0.35 * hiss
    loud = np.sqrt(np.mean(np.square(sound))) + 1e-9
    gain = 10 ** ((-25 + mood.energy + voice.habit.energy) / 20) / loud
    room = 3e-4 * (rng.random(samples) * 2 - 1)
    steps_of_16_bits = np.rint((np.clip(gain * sound, -0.95, 0.95) + room) * 32768)
    return (steps_of_16_bits / 32768).astype(np.float32)


def _accents(words: int, rng: np.random.Generator) -> np.ndarray:
    """Pitch targets float64[2 * words + 1]: one peak per word between low points."""
    targets = rng.uniform(-0.6, 0.1, 2 * words + 1)
    targets[1::2] = rng.uniform(0.2, 1.0, words)
    return targets


def _tracks(words: Sequence[str], tempo: float, rng: np.random.Generator):
    """Control tracks: formants float64[R, 4] in Hz, voicing [R] and frication [R] amplitudes."""
    rows: list[tuple[float, ...]] = []

    def hold(targets, seconds: float, voiced: float, friction: float) -> None:
        count = max(1, round(seconds / tempo * (0.9 + 0.2 * rng.random()) * SAMPLE_RATE / _STEP))
        rows.extend([(*targets, 3600.0, voiced, friction)] * count)

    rest = (500, 1500, 2500)
    hold(rest, 0.06, 0.0, 0.0)
    for word in words:
        for onset, vowel in zip(word[::2], word[1::2], strict=True):
            targets, seconds, voiced, friction, burst = _CONSONANTS[onset]
            hold(targets, seconds, voiced, friction)
            if burst:
                hold(targets, 0.012, 0.0, burst)
            hold(_VOWELS[vowel], 0.11, 1.0, 0.0)
        hold(rest, 0.05, 0.0, 0.0)
    hold(rest, 0.05, 0.0, 0.0)
    track = np.array(rows, np.float64)
    for column, width in ((slice(0, 4), 9), (slice(4, 5), 5), (slice(5, 6), 3)):
        track[:, column] = _smooth(track[:, column], width)
    return track[:, :4], track[:, 4], track[:, 5]


def _smooth(track: np.ndarray, width: int) -> np.ndarray:
    """Moving average of float64[R, C] over an odd number of steps."""
    padded = np.pad(track, ((width // 2 + 1, width // 2), (0, 0)), mode="edge")
    sums = np.cumsum(padded, axis=0)
    return (sums[width:] - sums[:-width]) / width


def _glottal_pulses(phase: np.ndarray) -> np.ndarray:
    """Differentiated Rosenberg pulses for float64[N] phases in [0, 1) (Rosenberg 1971, type C)."""
    opening, closing = 0.40, 0.16
    flow = np.where(
        phase < opening,
        0.5 * (1 - np.cos(np.pi * phase / opening)),
        np.cos(np.pi * np.clip(phase - opening, 0, closing) / (2 * closing)),
    )
    return 8 * np.diff(flow, prepend=flow[:1])


def _resonate(source: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Filters float64[N] by four resonators in series that move with formants float64[R, 4]."""
    from scipy import signal

    pieces = -(-len(source) // _PIECE)
    middles = np.minimum(np.arange(pieces) * (_PIECE // _STEP) + 2, len(formants) - 1)
    hertz = np.minimum(formants[middles], 7000.0)
    width = np.array([70.0, 100.0, 150.0, 220.0])
    radius = np.exp(-np.pi * width / SAMPLE_RATE)
    first = -2 * radius * np.cos(2 * np.pi * hertz / SAMPLE_RATE)
    sections = np.zeros((pieces, 4, 6))
    sections[..., 0] = 1 + first + radius**2  # gain 1 at 0 Hz
    sections[..., 3], sections[..., 4], sections[..., 5] = 1.0, first, radius**2
    state = np.zeros((4, 2))
    result = np.empty_like(source)
    for i in range(pieces):
        piece = slice(i * _PIECE, (i + 1) * _PIECE)
        result[piece], state = signal.sosfilt(sections[i], source[piece], zi=state)
    return result
