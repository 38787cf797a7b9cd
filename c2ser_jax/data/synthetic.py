"""A seeded source-filter synthesiser: the embedded default data. Synthetic, not emotional speech.

Glottal pulses and noise (source) pass four formant resonators (filter, as in Klatt 1980). Speakers
differ in pitch, vocal-tract length and habits; words are syllables of a small made-up lexicon;
"emotions" are settings of pitch, range, tempo, energy, breath and spectral tilt, relative to the
speaker's own habit and with overlap between classes. Samples are multiples of 2^-15, the same on
every machine.

Shapes: N samples at 16 kHz, R control steps of 5 ms, P pieces of 20 ms.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import lfilter, sosfilt

from c2ser_jax.data.audio import SAMPLE_RATE
from c2ser_jax.data.manifest import Utterance, write_manifest
from c2ser_jax.errors import UserError

CORPUS = "synthetic"
_STEP = 80  # samples per control step
_PIECE = 320  # samples that share one set of resonators


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


PROSODY = {
    "neutral": Prosody(),
    "angry": Prosody(2.5, 1.5, 3.0, 1.12, 5.0, -0.04, -0.25, 0.010),
    "happy": Prosody(3.0, 1.8, 0.0, 1.08, 2.5, 0.02, -0.12, 0.0),
    "sad": Prosody(-1.5, 0.6, 3.0, 0.84, -4.0, 0.10, 0.18, 0.004),
    "fearful": Prosody(4.0, 0.8, 0.5, 1.2, -1.5, 0.10, 0.0, 0.020),
    "surprised": Prosody(4.0, 2.0, -4.0, 0.95, 2.0, 0.04, -0.08, 0.0),
    "disgusted": Prosody(-1.0, 1.1, 4.0, 0.9, 1.0, 0.0, 0.05, 0.015),
    "bored": Prosody(-1.0, 0.4, 1.0, 0.8, -2.0, 0.04, 0.10, 0.0),
}

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
LEXICON = (
    "mana sito belu kado nilu fema tuba loni sawe diko mula teso bani kefu lado wimo nesa tofi "
    "duka melo sanitu bolake fimado tewula"
).split()


@dataclass(frozen=True)
class SyntheticConfig:
    """How much to synthesise: every speaker says `utterances` different ones per emotion.

    `difficulty` scales the scatter of the prosody around its setting and the speakers' habits
    (0: every class is exact). `unlabelled` more utterances per speaker have no label.
    """

    speakers: int = 8
    emotions: tuple[str, ...] = ("angry", "happy", "neutral", "sad")
    utterances: int = 12
    unlabelled: int = 0
    min_words: int = 2
    max_words: int = 4
    difficulty: float = 0.6
    seed: int = 0

    def __post_init__(self):
        unknown = sorted(set(self.emotions) - set(PROSODY))
        if unknown or not self.emotions:
            raise UserError(
                f"synthetic.emotions {unknown} are not known; choose from {', '.join(PROSODY)}"
            )
        if self.speakers < 1 or self.utterances < 1 or not 1 <= self.min_words <= self.max_words:
            raise UserError("synthetic data need a speaker, an utterance and 1 <= min <= max words")
        if self.difficulty < 0 or self.unlabelled < 0:
            raise UserError("synthetic.difficulty and .unlabelled must not be negative")


def synthesize(cfg: SyntheticConfig | None = None) -> list[tuple[Utterance, np.ndarray]]:
    """Returns pairs (utterance, float32[N]); `text` holds the words, `extra` says synthetic.

    Every utterance is drawn from (seed, speaker, its number), so a larger configuration begins
    with the same utterances of each speaker and emotion.
    """
    cfg = cfg or SyntheticConfig()
    items = []
    for speaker in range(cfg.speakers):
        voice = _Voice.draw(np.random.default_rng([cfg.seed, speaker]), speaker, cfg.difficulty)
        plan = [(name, i) for name in cfg.emotions for i in range(cfg.utterances)]
        hidden = [(cfg.emotions[i % len(cfg.emotions)], i) for i in range(cfg.unlabelled)]
        for number, (emotion, take) in enumerate(plan + hidden):
            labelled = number < len(plan)
            code = [cfg.seed, speaker, sorted(PROSODY).index(emotion), take, labelled]
            rng = np.random.default_rng(code)
            count = int(rng.integers(cfg.min_words, cfg.max_words + 1))
            words = [LEXICON[int(rng.integers(len(LEXICON)))] for _ in range(count)]
            audio = _say(words, voice, _scatter(PROSODY[emotion], rng, cfg.difficulty), rng)
            name = f"s{speaker:02d}-{emotion if labelled else 'unlabelled'}-{take:03d}"
            utterance = Utterance(
                name,
                f"synthetic:{name}",
                label=emotion if labelled else None,
                speaker=f"s{speaker:02d}",
                language="synthetic",
                corpus=CORPUS,
                text=" ".join(words),
                extra={"synthetic": "not emotional speech"},
            )
            items.append((utterance, audio))
    return items


def write_synthetic(folder: str | os.PathLike[str], cfg: SyntheticConfig | None = None) -> Path:
    """Writes 16-bit wav files and `manifest.jsonl` into a folder; returns the manifest's path."""
    target = Path(folder)
    (target / "wav").mkdir(parents=True, exist_ok=True)
    rows = []
    for utterance, audio in synthesize(cfg):
        path = target / "wav" / f"{utterance.id}.wav"
        soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16")
        rows.append(Utterance(**{**vars(utterance), "path": str(path)}))
    write_manifest(target / "manifest.jsonl", rows)
    return target / "manifest.jsonl"


@dataclass(frozen=True)
class _Voice:
    """A speaker: pitch in Hz, formant scale, and habits in the units of `Prosody`."""

    pitch: float
    tract: float
    habit: Prosody

    @classmethod
    def draw(cls, rng: np.random.Generator, speaker: int, difficulty: float) -> "_Voice":
        high = speaker % 2  # low and high voices in turn
        pitch = (110.0, 195.0)[high] * 2 ** (rng.uniform(-4, 4) / 12)
        tract = (1.0, 1.14)[high] * (1 + rng.uniform(-0.06, 0.06))
        spread = rng.uniform(-1, 1, 6) * difficulty
        habit = Prosody(
            0.0,
            2.0 ** (0.3 * spread[0]),
            0.8 * spread[1],
            1 + 0.12 * spread[2],
            3.0 * spread[3],
            0.05 + 0.03 * spread[4],
            0.45 + 0.12 * spread[5],
            0.006,
        )
        return cls(pitch, tract, habit)


def _scatter(setting: Prosody, rng: np.random.Generator, difficulty: float) -> Prosody:
    """One utterance's prosody: the emotion's setting with its scatter, strength included."""
    strength = 1 + 0.35 * difficulty * rng.uniform(-1, 1)
    noise = rng.uniform(-1, 1, 7) * difficulty
    return Prosody(
        setting.level * strength + 1.6 * noise[0],
        setting.range**strength * 2 ** (0.35 * noise[1]),
        setting.fall + 1.5 * noise[2],
        setting.tempo**strength * 2 ** (0.14 * noise[3]),
        setting.energy * strength + 2.5 * noise[4],
        setting.breath * strength + 0.03 * noise[5],
        setting.tilt * strength + 0.08 * noise[6],
        setting.shake * strength,
    )


def _say(words: list[str], voice: _Voice, mood: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Synthesises float32[N] in [-1, 1)."""
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
    source = np.asarray(lfilter([1 - tilt], [1.0, -tilt], source))

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


def _tracks(words: list[str], tempo: float, rng: np.random.Generator):
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
        result[piece], state = sosfilt(sections[i], source[piece], zi=state)
    return result
