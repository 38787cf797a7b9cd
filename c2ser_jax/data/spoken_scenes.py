"""Embedded speech whose label takes two senses: what is said and how. Not emotional speech.

The words tell a scene, the voice a manner; scene and manner together name the label, and either
alone leaves several labels open. Speaking rate, pitch and loudness are low, middle or high for the
speaker, and their sum is the manner's sign: a listener who states them can reason from them.

Shapes: N samples at 16 kHz.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import soundfile

from c2ser_jax.data.audio import SAMPLE_RATE
from c2ser_jax.data.emotion_words import label_noun
from c2ser_jax.data.files import write_text
from c2ser_jax.data.manifest import Utterance, write_manifest
from c2ser_jax.data.prompts import answer_language
from c2ser_jax.data.source_filter import Prosody, Voice, say
from c2ser_jax.errors import UserError

CORPUS = "spoken_scenes"

CELLS = {
    "angry": ("bad", "lively"),
    "happy": ("good", "lively"),
    "neutral": ("good", "calm"),
    "sad": ("bad", "calm"),
    "disgusted": ("bad", "even"),
    "fearful": ("odd", "even"),
    "surprised": ("odd", "lively"),
}
"""Scene and manner of every label."""

_MANNERS = {
    "calm": Prosody(range=0.6, fall=3.0, breath=0.08, tilt=0.14),
    "even": Prosody(),
    "lively": Prosody(range=1.7, fall=0.0, breath=-0.03, tilt=-0.16),
}
_SIGNS = {"calm": -1, "even": 0, "lively": 1}
_LEVELS = ("low", "middle", "high")
_STYLES = {
    manner: [s for s in product((-1, 0, 1), repeat=3) if np.sign(sum(s)) == sign]
    for manner, sign in _SIGNS.items()
}
"""The settings of (rate, pitch, loudness) that each manner may have, equally often."""

# Written word: how it sounds. No two words of a language have the same vowels.
_WORDS = {
    "en": {
        "good": {"mana": "mana", "lufi": "lufi", "wedo": "wedo", "sobi": "sobi"},
        "bad": {"kado": "kado", "tiku": "tiku", "feba": "feba", "nole": "nole"},
        "odd": {"bume": "bume", "sila": "sila", "dewi": "dewi", "lowu": "lowu"},
        "any": {"nafe": "nafe", "tuda": "tuda", "misi": "misi", "beku": "beku"},
    },
    "zh": {
        "good": {"玛尼": "mani", "路娃": "luwa", "特苏": "tesu", "波德": "bode"},
        "bad": {"卡布": "kabu", "迪莫": "dimo", "色法": "sefa", "沃图": "wotu"},
        "odd": {"努提": "nuti", "比可": "bike", "拉佛": "lafo", "乐么": "leme"},
        "any": {"萨巴": "saba", "夫多": "fudo", "米利": "mili", "索达": "soda"},
    },
}
LANGUAGES = tuple(_WORDS)

_NAMES = {
    "good": {"en": "good", "zh": "好"},
    "bad": {"en": "bad", "zh": "坏"},
    "odd": {"en": "odd", "zh": "怪"},
    "calm": {"en": "calm", "zh": "平静"},
    "even": {"en": "steady", "zh": "平稳"},
    "lively": {"en": "lively", "zh": "活泼"},
}
"""Words of a rationale."""


@dataclass(frozen=True)
class SpokenScenesConfig:
    """How much to synthesise: every speaker says `utterances` different ones per label.

    Speakers take the languages in turn, two at a time: a low and a high voice. An utterance has one
    or two words of the scene and, where it has more than one word, one that fits every scene.
    `difficulty` scales the scatter of the prosody around its level and the speakers' habits (0:
    every level is exact).
    """

    speakers: int = 20
    emotions: tuple[str, ...] = ("angry", "happy", "neutral", "sad")
    languages: tuple[str, ...] = ("en",)
    utterances: int = 24
    min_words: int = 2
    max_words: int = 3
    difficulty: float = 0.5
    seed: int = 0

    def __post_init__(self):
        for name, given, known in (
            ("emotions", self.emotions, CELLS),
            ("languages", self.languages, LANGUAGES),
        ):
            unknown = [value for value in given if value not in known]
            if unknown or not given:
                raise UserError(
                    f"spoken_scenes.{name} {unknown} are not known; choose from {', '.join(known)}"
                )
        if self.speakers < 1 or self.utterances < 1:
            raise UserError("spoken scenes need at least one speaker and one utterance")
        if not 1 <= self.min_words <= self.max_words <= 3:
            raise UserError("spoken scenes have 1 <= min_words <= max_words <= 3 words")
        if self.difficulty < 0:
            raise UserError("spoken_scenes.difficulty must not be negative")


def ceilings(emotions: Sequence[str] = SpokenScenesConfig.emotions) -> dict[str, float]:
    """The best accuracy possible, by what is known of an utterance, all labels being as frequent.

    "constant": nothing; "words": the transcript; "prosody": the voice; "both". Exact: words depend
    on the label through the scene alone, prosody through the manner alone.
    """
    cells = [CELLS[name] for name in emotions]
    known = {
        "constant": [()] * len(cells),
        "words": [scene for scene, _ in cells],
        "prosody": [manner for _, manner in cells],
        "both": cells,
    }
    return {name: len(Counter(seen)) / len(cells) for name, seen in known.items()}


def speak_scenes(cfg: SpokenScenesConfig | None = None) -> list[tuple[Utterance, np.ndarray]]:
    """Returns pairs (utterance, float32[N]).

    `text` holds the words; `extra` the scene, the manner, the levels of rate, pitch and loudness
    and the reason for the label, and says synthetic. Every utterance is drawn from (seed, speaker,
    label, its number), so a larger configuration begins with the same ones.
    """
    cfg = cfg or SpokenScenesConfig()
    items = []
    for speaker in range(cfg.speakers):
        voice = _draw_voice(np.random.default_rng([cfg.seed, speaker]), speaker, cfg.difficulty)
        language = cfg.languages[speaker // 2 % len(cfg.languages)]
        for emotion, take in product(cfg.emotions, range(cfg.utterances)):
            scene, manner = CELLS[emotion]
            place = list(CELLS).index(emotion)
            rng = np.random.default_rng([cfg.seed, speaker, place, take])
            words = _draw_words(_WORDS[language], scene, rng, cfg)
            style = _STYLES[manner][int(rng.integers(len(_STYLES[manner])))]
            mood = _draw_mood(_MANNERS[manner], style, rng, cfg.difficulty)
            audio = say([sound for _, sound in words], voice, mood, rng)
            number = place * 10_000 + take
            name = f"{language.upper()}_B00000_S{speaker:05d}_W{number:06d}"
            levels = (_LEVELS[1 + level] for level in style)
            utterance = Utterance(
                name,
                f"{CORPUS}:{name}",
                label=emotion,
                speaker=f"s{speaker:02d}",
                language=language,
                corpus=CORPUS,
                text=(" " if language == "en" else "").join(word for word, _ in words),
                extra={
                    "synthetic": "not emotional speech",
                    "scene": scene,
                    "manner": manner,
                    "rationale": _reason(emotion, language),
                    **dict(zip(("rate", "pitch", "loudness"), levels, strict=True)),
                },
            )
            items.append((utterance, audio))
    return items


def write_scenes(folder: str | os.PathLike[str], cfg: SpokenScenesConfig | None = None) -> Path:
    """Writes 16-bit wav files and two lists of them; returns the path of `manifest.jsonl`.

    `scenes.jsonl` has the four fields of Emo-Emilia's list (index, emotion, wav, text).
    """
    target = Path(folder)
    (target / "wav").mkdir(parents=True, exist_ok=True)
    rows = []
    for utterance, audio in speak_scenes(cfg):
        path = target / "wav" / f"{utterance.id}.wav"
        soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16")
        rows.append(Utterance(**{**vars(utterance), "path": str(path)}))
    write_manifest(target / "manifest.jsonl", rows)
    listed = [
        {"index": row.id, "emotion": row.label, "wav": f"./wav/{row.id}.wav", "text": row.text}
        for row in rows
    ]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in listed]
    write_text(target / "scenes.jsonl", "".join(lines))
    return target / "manifest.jsonl"


def _reason(emotion: str, language: str) -> str:
    """The sentence that leads from scene and manner to the label."""
    chosen = answer_language(language)
    scene, manner = (_NAMES[name][chosen] for name in CELLS[emotion])
    noun = label_noun(emotion, chosen)
    if chosen == "zh":
        return f"{scene}的内容和{manner}的声音说明{noun}。"
    return f"{scene} words in a {manner} voice mean {noun}."


def _draw_words(
    lexicon: dict[str, dict[str, str]], scene: str, rng: np.random.Generator,
    cfg: SpokenScenesConfig,
) -> list[tuple[str, str]]:  # fmt: skip
    """(written, sounded) words: different ones of the scene, and one that fits every scene."""
    count = int(rng.integers(cfg.min_words, cfg.max_words + 1))
    telling, neutral = list(lexicon[scene].items()), list(lexicon["any"].items())
    words = [telling[i] for i in rng.permutation(len(telling))[: max(1, count - 1)]]
    if count > 1:
        place = int(rng.integers(count))
        words.insert(place, neutral[int(rng.integers(len(neutral)))])
    return words


def _draw_voice(rng: np.random.Generator, speaker: int, difficulty: float) -> Voice:
    """Low and high voices in turn; a voice's tract tells its pitch, so levels can be heard."""
    high = speaker % 2
    spread = rng.uniform(-1, 1, 7) * difficulty
    pitch = (170.0, 250.0)[high] * 2 ** (1.5 * spread[0] / 12)
    tract = (1.0, 1.16)[high] * (1 + 0.06 * spread[1])
    habit = Prosody(
        range=2.0 ** (0.2 * spread[2]),
        fall=0.0,
        tempo=1.2 * 2 ** (0.1 * spread[3]),
        energy=1.5 * spread[4],
        breath=0.05 + 0.03 * spread[5],
        tilt=0.45 + 0.12 * spread[6],
        shake=0.006,
    )
    return Voice(pitch, tract, habit)


def _draw_mood(
    manner: Prosody, style: tuple[int, ...], rng: np.random.Generator, difficulty: float
) -> Prosody:
    """One utterance's prosody: its manner and levels of (rate, pitch, loudness), with scatter."""
    rate, pitch, loudness = style
    noise = rng.uniform(-1, 1, 7) * difficulty
    return Prosody(
        level=5.0 * pitch + 1.5 * noise[0],
        range=manner.range * 2 ** (0.3 * noise[1]),
        fall=manner.fall + 1.5 * noise[2],
        tempo=1.3**rate * 2 ** (0.12 * noise[3]),
        energy=6.0 * loudness + 2.0 * noise[4],
        breath=manner.breath + 0.03 * noise[5],
        tilt=manner.tilt + 0.08 * noise[6],
        shake=manner.shake,
    )
