"""The embedded default data: seeded synthetic speech in several moods. Not emotional speech.

Speakers differ in pitch, vocal-tract length and habits; utterances are words of a small made-up
lexicon; "emotions" are settings of pitch, range, tempo, energy, breath and spectral tilt, relative
to the speaker's own habit and with overlap between classes.

Shapes: N samples at 16 kHz.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from c2ser_jax.data.audio import SAMPLE_RATE
from c2ser_jax.data.manifest import Utterance, write_manifest
from c2ser_jax.data.source_filter import Prosody, Voice, say
from c2ser_jax.errors import UserError

CORPUS = "synthetic"
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
        voice = _draw_voice(np.random.default_rng([cfg.seed, speaker]), speaker, cfg.difficulty)
        plan = [(name, i) for name in cfg.emotions for i in range(cfg.utterances)]
        hidden = [(cfg.emotions[i % len(cfg.emotions)], i) for i in range(cfg.unlabelled)]
        for number, (emotion, take) in enumerate(plan + hidden):
            labelled = number < len(plan)
            code = [cfg.seed, speaker, sorted(PROSODY).index(emotion), take, labelled]
            rng = np.random.default_rng(code)
            count = int(rng.integers(cfg.min_words, cfg.max_words + 1))
            words = [LEXICON[int(rng.integers(len(LEXICON)))] for _ in range(count)]
            audio = say(words, voice, _scatter(PROSODY[emotion], rng, cfg.difficulty), rng)
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


def _draw_voice(rng: np.random.Generator, speaker: int, difficulty: float) -> Voice:
    """A speaker: low and high voices in turn, with habits of their own."""
    high = speaker % 2
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
    return Voice(pitch, tract, habit)


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
