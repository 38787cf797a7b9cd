"""How somebody speaks: rate, pitch and loudness measured, and cut into low, middle and high.

Source: C2SER's explicit targets, which cut mean F0, loudness and speaking rate at μ ± σ.

Shapes: N samples at 16 kHz, T frames.
"""

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from c2ser_jax.data.audio import SAMPLE_RATE
from c2ser_jax.data.files import write_text
from c2ser_jax.data.lazy_librosa import load_librosa
from c2ser_jax.errors import UserError

Level = Literal["low", "middle", "high"]
LEVELS: tuple[Level, ...] = get_args(Level)
ATTRIBUTES = ("rate", "pitch", "loudness")
EVERYBODY = ""
"""The name under which bounds over all speakers stand."""

_HOP, _FRAME = 256, 2048  # samples; 16 ms and 128 ms
_LOWEST, _HIGHEST = 65.0, 500.0  # Hz, of voices
_THRESHOLDS = (2, 8)  # pyin's beta distribution with mean 0.2: angry and breathy voices count, too
_ACTIVE_DB = -25.0  # below the loud frames of the utterance; fainter ones are echo and noise
_BLOCK, _BLOCK_HOP = 6400, 1600  # 400 ms blocks every 100 ms, as ITU-R BS.1770 gates
_SILENT_DB, _GATE_DB = -70.0, -10.0
# One syllable each: Chinese, Japanese and Korean characters, digits.
_SYLLABLE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\d]")
_WORD = re.compile(r"[^\W\d_]+")
_NUCLEI = re.compile(r"[aeiouyæøœəаеёиоуыэюяієαεηιουω]+")
_LETTERS = str.maketrans("ıй", "ij")  # one without its dot, one that is no vowel
_LETTERS_PER_SYLLABLE = 2.5  # of words without written vowels


@dataclass(frozen=True)
class Style:
    """rate in units per voiced second, mean pitch in Hz, loudness in dB; None: not measurable."""

    rate: float | None
    pitch: float | None
    loudness: float | None


def measure_style(audio: np.ndarray, text: str | None) -> Style:
    """Measures float32[N] that says `text`.

    Pitch is the mean F0 of voiced frames (librosa's pyin, 65 to 500 Hz) that are not much fainter
    than the loud ones. Loudness is the mean power of 400 ms blocks after the two gates of ITU-R
    BS.1770 (-70 dB, 10 below their mean), without its weighting. Rate counts syllables
    (`speech_units`) per voiced second.
    """
    pitch, seconds = _voicing(np.asarray(audio, np.float32))
    units = speech_units(text or "")
    rate = units / seconds if units and seconds > 0.05 else None
    return Style(rate, pitch, _loudness(np.asarray(audio, np.float64)))


def speech_units(text: str) -> int:
    """Syllables of a text, about: Chinese, Japanese and Korean characters, digits, vowel groups.

    Of a word whose vowels aren't written, as in Arabic script, the letters tell.
    """
    units = len(_SYLLABLE.findall(text))
    plain = unicodedata.normalize("NFD", _SYLLABLE.sub(" ", text.lower()).translate(_LETTERS))
    letters = "".join(one for one in plain if not unicodedata.combining(one))
    for word in _WORD.findall(letters):
        units += len(_NUCLEI.findall(word)) or max(1, round(len(word) / _LETTERS_PER_SYLLABLE))
    return units


@dataclass(frozen=True)
class StyleBounds:
    """Where each attribute is cut: {attribute: (μ - σ, μ + σ)}, by speaker, `EVERYBODY` for all."""

    by_speaker: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, styles: Sequence[Style], speakers: Sequence[str | None], *, least: int = 8
    ) -> "StyleBounds":
        """Bounds of training utterances; a speaker with `least` measured ones has bounds alone."""
        everybody = _bounds(styles, 1)
        table = {EVERYBODY: everybody} if everybody else {}
        for speaker in sorted({s for s in speakers if s}):
            own = [style for style, s in zip(styles, speakers, strict=True) if s == speaker]
            if found := _bounds(own, least):
                table[speaker] = found
        return cls(table)

    def levels(self, style: Style, speaker: str | None) -> dict[str, Level | None]:
        """The level of every attribute; None where it was not measured or has no bounds."""
        general = self.by_speaker.get(EVERYBODY, {})
        own = {**general, **self.by_speaker.get(speaker or EVERYBODY, {})}
        found: dict[str, Level | None] = {}
        for name in ATTRIBUTES:
            value = getattr(style, name)
            if value is None or name not in own:
                found[name] = None
                continue
            low, high = own[name]
            found[name] = "low" if value < low else "high" if value > high else "middle"
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: {k: list(v) for k, v in row.items()} for name, row in self.by_speaker.items()}

    @classmethod
    def from_json(cls, values: Any, where: str = "style bounds") -> "StyleBounds":
        """Undoes `to_json`. Raises `UserError` for anything else."""
        try:
            table = {
                str(speaker): {
                    name: (float(row[name][0]), float(row[name][1]))
                    for name in ATTRIBUTES
                    if name in row
                }
                for speaker, row in values.items()
            }
        except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise UserError(
                f"{where}: wanted {{speaker: {{rate: [low, high], …}}}}; write them again"
            ) from error
        return cls(table)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        write_text(Path(path), json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "StyleBounds":
        """Reads what `save` wrote. Raises `UserError` when it cannot."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is no file of style bounds ({error}); write it again"
            ) from None
        return cls.from_json(values, str(path))


def _bounds(styles: Sequence[Style], least: int) -> dict[str, tuple[float, float]]:
    found = {}
    for name in ATTRIBUTES:
        values = [v for style in styles if (v := getattr(style, name)) is not None]
        if len(values) >= least:
            mean, deviation = float(np.mean(values)), float(np.std(values))
            found[name] = (mean - deviation, mean + deviation)
    return found


def _voicing(audio: np.ndarray) -> tuple[float | None, float]:
    """(mean F0 in Hz or None, voiced seconds)."""
    librosa = load_librosa()
    if len(audio) < _FRAME:
        audio = np.pad(audio, (0, _FRAME - len(audio)))
    with np.errstate(invalid="ignore", divide="ignore"):
        pitch, voiced, _ = librosa.pyin(
            audio, fmin=_LOWEST, fmax=_HIGHEST, sr=SAMPLE_RATE, frame_length=_FRAME,
            hop_length=_HOP, resolution=0.2, beta_parameters=_THRESHOLDS,
        )  # fmt: skip
    power = librosa.feature.rms(y=audio, frame_length=_FRAME // 2, hop_length=_HOP)[0] ** 2
    power = power[: len(voiced)]
    voiced &= power > np.percentile(power, 95) * 10 ** (_ACTIVE_DB / 10)
    if not voiced.any():
        return None, 0.0
    return float(np.mean(pitch[voiced])), float(voiced.sum()) * _HOP / SAMPLE_RATE


def _loudness(audio: np.ndarray) -> float | None:
    """Gated mean power in dB; None for silence."""
    power = np.square(audio)
    if len(power) < _BLOCK:
        blocks = power.mean(keepdims=True) if len(power) else power
    else:
        sums = np.concatenate([[0.0], np.cumsum(power)])
        starts = np.arange(0, len(power) - _BLOCK + 1, _BLOCK_HOP)
        blocks = (sums[starts + _BLOCK] - sums[starts]) / _BLOCK
    blocks = blocks[blocks > 10 ** (_SILENT_DB / 10)]
    if not len(blocks):
        return None
    blocks = blocks[blocks >= blocks.mean() * 10 ** (_GATE_DB / 10)]
    return float(10 * np.log10(blocks.mean()))
