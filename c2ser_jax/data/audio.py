"""Reads any audio file as 16 kHz mono float32, whole or in blocks of bounded memory.

Shapes: N samples at 16 kHz, M samples at the file's own rate, C channels.
Decoding is soundfile (wav, flac, ogg, mp3 ...), resampling is soxr HQ, channels are averaged.
A file read in blocks gives the same samples, bit by bit, as the file read at once.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr

from c2ser_jax.data.opening import (
    REASONS,
    AudioFile,
    BadAudio,
    audio_name,
    error_text,
    open_audio,
)
from c2ser_jax.errors import UserError

__all__ = [
    "MIN_SAMPLES",
    "REASONS",
    "SAMPLE_RATE",
    "AudioFile",
    "AudioInfo",
    "AudioScan",
    "BadAudio",
    "RunningScan",
    "audio_sha256",
    "check_not_silent",
    "from_array",
    "probe_audio",
    "read_audio",
    "scan_audio",
    "stream_audio",
]

SAMPLE_RATE = 16_000
MIN_SAMPLES = 400  # one frame of the encoder: 25 ms
_BLOCK_VALUES = 1 << 20  # values decoded at a time, over all channels: 4 MiB of float32
_UNKNOWN = 1 << 60  # libsndfile's count of frames when the header does not tell
_SILENT_RANGE = 2.0**-16  # half a step of 16-bit audio


@dataclass(frozen=True)
class AudioInfo:
    """What the header says: length in seconds, rate in Hz, channels, frames at that rate."""

    seconds: float
    rate: int
    channels: int
    frames: int


@dataclass(frozen=True)
class AudioScan:
    """What one pass over the samples found (16 kHz mono).

    `samples` is the length, `mean` and `variance` (population) are those of the whole utterance,
    `sha256` is that of the samples as little-endian int16 (see `audio_sha256`).
    """

    samples: int
    mean: float
    variance: float
    sha256: str

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / SAMPLE_RATE


class RunningScan:
    """Gathers an `AudioScan` block by block in float64, and refuses what is unusable.

    Mean and variance merge as in Chan, Golub, LeVeque 1979 (no cancellation on offsets).
    """

    def __init__(self, name: str):
        self._name = name
        self.samples, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = np.inf, -np.inf
        self._hash = hashlib.sha256()

    def add(self, block: np.ndarray) -> None:
        """Takes the next samples, float32[N]; `BadAudio` when one is NaN or infinite."""
        if not len(block):
            return
        _check_finite(block, self._name)
        exact = block.astype(np.float64)
        mean, count = exact.mean(), len(block)
        delta, total = mean - self._mean, self.samples + count
        self._squares += np.square(exact - mean).sum() + delta**2 * self.samples * count / total
        self._mean += delta * count / total
        self.samples = total
        self._low, self._high = min(self._low, block.min()), max(self._high, block.max())
        self._hash.update(_int16(block).tobytes())

    def result(self, *, min_samples: int = MIN_SAMPLES, allow_silent: bool = True) -> AudioScan:
        """Returns the scan; `BadAudio` when the audio was too short, or silent and that counts."""
        _check_length(self.samples, min_samples, self._name)
        if not allow_silent:
            check_not_silent(self._low, self._high, self._name)
        variance = self._squares / self.samples
        return AudioScan(self.samples, float(self._mean), float(variance), self._hash.hexdigest())


def probe_audio(source: AudioFile) -> AudioInfo:
    """Reads the header only; `BadAudio` when the file is missing, empty, unreadable or cut off.

    A file whose header leaves the length open (a flac written to a pipe) is decoded to count.
    """
    with open_audio(source) as (file, name):
        frames = file.frames
        if frames >= _UNKNOWN:
            step, frames = max(1, _BLOCK_VALUES // file.channels), 0
            while count := len(_decode(file, step, name)):
                frames += count
        return AudioInfo(frames / file.samplerate, file.samplerate, file.channels, frames)


def read_audio(
    source: AudioFile,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    channel: int | None = None,
    min_samples: int = MIN_SAMPLES,
    allow_silent: bool = True,
) -> np.ndarray:
    """Returns float32[N], 16 kHz mono in [-1, 1] (float files may exceed it).

    `start_seconds` and `end_seconds` cut a piece; `channel` (from 1) picks one channel instead of
    the mean of all. Raises `BadAudio` with its reason; silence only when `allow_silent` is False.
    """
    name = audio_name(source)
    blocks = list(
        stream_audio(source, start_seconds=start_seconds, end_seconds=end_seconds, channel=channel)
    )
    audio = blocks[0] if len(blocks) == 1 else np.concatenate(blocks or [np.zeros(0, np.float32)])
    _check_length(len(audio), min_samples, name)
    if not allow_silent:
        check_not_silent(float(audio.min()), float(audio.max()), name)
    return audio


def stream_audio(
    source: AudioFile,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields float32[N] blocks of 16 kHz mono whose concatenation is `read_audio`'s result.

    Memory stays below about 20 MiB at any length, rate and channel count. A file whose header
    promises more than it holds, or with NaN or infinite samples, raises `BadAudio` on the way.
    """
    with open_audio(source) as (file, name):
        rate = file.samplerate
        if channel is not None and not 1 <= channel <= file.channels:
            raise BadAudio(
                name,
                "unreadable",
                f"channel {channel} was asked for, the file has {file.channels} (counted from 1)",
            )
        begin = round((start_seconds or 0.0) * rate)
        stop = file.frames if end_seconds is None else min(file.frames, round(end_seconds * rate))
        if begin:
            if begin >= stop:
                raise BadAudio(
                    name,
                    "empty",
                    f"the piece from {start_seconds} s on is empty; the file is "
                    f"{file.frames / rate:.2f} s long",
                )
            file.seek(begin)
        resample = None
        if rate != SAMPLE_RATE:
            resample = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        done, step = begin, max(1, _BLOCK_VALUES // file.channels)
        while done < stop:
            block = _decode(file, min(step, stop - done), name)
            done += len(block)
            last = done >= stop or not len(block)
            if not len(block):
                _check_complete(file, done, stop, name)
            mono = _mix(block, channel)
            _check_finite(mono, name)
            if resample is not None:
                mono = resample.resample_chunk(mono, last=last)
            if len(mono):
                yield mono
            if last:
                return


def scan_audio(
    source: AudioFile,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    channel: int | None = None,
    min_samples: int = MIN_SAMPLES,
    allow_silent: bool = True,
) -> AudioScan:
    """Decodes once in bounded memory and returns length, statistics and checksum."""
    scan = RunningScan(audio_name(source))
    for block in stream_audio(
        source, start_seconds=start_seconds, end_seconds=end_seconds, channel=channel
    ):
        scan.add(block)
    return scan.result(min_samples=min_samples, allow_silent=allow_silent)


def from_array(array: Any, rate: int, *, name: str = "array") -> np.ndarray:
    """Returns float32[N] 16 kHz mono for samples [M], [M, C] or [C, M] at `rate` Hz.

    Integers are divided by their type's range; of two axes the shorter one holds the channels.
    """
    audio = np.asarray(array)
    if not isinstance(rate, int | np.integer) or rate <= 0:
        raise UserError(f"{name}: the sample rate must be a positive whole number, got {rate!r}")
    if audio.dtype.kind in "iu":
        bits = audio.dtype.itemsize * 8
        offset = 0 if audio.dtype.kind == "i" else 2 ** (bits - 1)
        audio = (audio.astype(np.float64) - offset) / 2 ** (bits - 1)
    elif audio.dtype.kind != "f":
        raise UserError(f"{name}: samples must be numbers, got an array of {audio.dtype}")
    if audio.ndim == 2:
        audio = audio.mean(axis=int(np.argmin(audio.shape)), dtype=np.float64)
    if audio.ndim != 1:
        raise UserError(f"{name}: samples must have one or two axes, got shape {audio.shape}")
    audio = audio.astype(np.float32)
    _check_length(len(audio), 1, name)
    _check_finite(audio, name)
    if rate != SAMPLE_RATE:
        audio = soxr.resample(audio, rate, SAMPLE_RATE, quality="HQ")
    _check_length(len(audio), MIN_SAMPLES, name)
    return np.ascontiguousarray(audio)


def check_not_silent(low: float, high: float, name: str) -> None:
    """Raises `BadAudio` when the extreme samples differ by less than half a 16-bit step."""
    if high - low < _SILENT_RANGE:
        detail = "all samples are the same (silence); remove it from the list, or allow silence"
        raise BadAudio(name, "silent", detail)


def audio_sha256(audio: np.ndarray) -> str:
    """SHA-256 of float32[N] rounded to little-endian int16; equals that of a 16-bit file's PCM."""
    return hashlib.sha256(_int16(audio).tobytes()).hexdigest()


def _int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(audio * np.float32(32768)), -32768, 32767).astype("<i2")


def _decode(file: soundfile.SoundFile, frames: int, name: str) -> np.ndarray:
    """Next float32[M, C]."""
    try:
        return file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        detail = f"damaged: decoding stops ({error_text(error)}); copy it again"
        raise BadAudio(name, "unreadable", detail) from None


def _check_complete(file: soundfile.SoundFile, done: int, stop: int, name: str) -> None:
    """Refuses a file that ended early; an mp3's header only estimates, so it has some slack."""
    slack = 0.1 * stop + 4 * 1152 if file.format == "MP3" else 0
    if file.frames < _UNKNOWN and done + slack < stop:
        detail = f"cut off: {done} of {stop} promised samples decode; copy it again"
        raise BadAudio(name, "unreadable", detail)


def _mix(block: np.ndarray, channel: int | None) -> np.ndarray:
    """float32[M, C] -> float32[M]."""
    if channel is not None:
        return np.ascontiguousarray(block[:, channel - 1])
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def _check_finite(audio: np.ndarray, name: str) -> None:
    if not np.isfinite(audio).all():
        detail = "holds NaN or infinite samples; write it again from the original recording"
        raise BadAudio(name, "not finite", detail)


def _check_length(samples: int, least: int, name: str) -> None:
    if samples == 0 and least > 0:
        raise BadAudio(name, "empty", "the file has no samples; copy or record it again")
    if samples < least:
        detail = f"{samples / SAMPLE_RATE:.4f} s is too short; at least {least / SAMPLE_RATE} s"
        raise BadAudio(name, "too short", f"{detail} are needed")
