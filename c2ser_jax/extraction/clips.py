"""Brings clips (files, pieces of files, arrays) to the engine: lengths first, then samples.

Threads decode a few clips ahead of the model. A clip longer than the window is streamed twice, once
for its length and statistics and once in windows, and is never in memory whole.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2ser_jax.data.audio import (
    SAMPLE_RATE,
    BadAudio,
    from_array,
    probe_audio,
    read_audio,
    scan_audio,
    stream_audio,
)
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.extraction.windows import FrameRule, Window, cut_windows, plan_windows

_AHEAD = 32
_LONGEST_SAMPLES = SAMPLE_RATE * 3600 * 100


@dataclass(frozen=True)
class Clip:
    """Audio to be read when its turn comes: a file, [start, end) seconds of one, or samples."""

    id: str
    path: str = ""
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    audio: np.ndarray | None = None  # float32[N] at 16 kHz

    @classmethod
    def of(cls, utterance: Utterance) -> "Clip":
        """The clip that a row of a manifest names."""
        u = utterance
        return cls(u.id, u.path, u.start, u.end, u.channel)

    @classmethod
    def of_array(cls, clip_id: str, samples: Any, rate: int) -> "Clip":
        """A clip of samples at `rate` Hz; raises `UserError` when they are unusable."""
        return cls(clip_id, audio=from_array(samples, rate, name=clip_id))

    def _piece(self) -> dict[str, Any]:
        return {"start_seconds": self.start, "end_seconds": self.end, "channel": self.channel}

    def estimate(self) -> int:
        """Samples at 16 kHz by the header alone; raises `BadAudio`."""
        if self.audio is not None:
            return len(self.audio)
        info = probe_audio(self.path)
        stop = info.seconds if self.end is None else min(info.seconds, self.end)
        samples = round((stop - (self.start or 0.0)) * SAMPLE_RATE)
        if info.rate != SAMPLE_RATE:
            samples += 2  # the resampler may round up
        return min(_LONGEST_SAMPLES, max(0, samples))

    def read(self) -> np.ndarray:
        """float32[N] at 16 kHz; raises `BadAudio`."""
        return self.audio if self.audio is not None else read_audio(self.path, **self._piece())

    def scan(self) -> tuple[int, float, float]:
        """Samples, mean and biased variance of the whole clip; raises `BadAudio`."""
        if self.audio is not None:
            return len(self.audio), *statistics(self.audio)
        found = scan_audio(self.path, **self._piece())
        return found.samples, found.mean, found.variance

    def stream(self) -> Iterator[np.ndarray]:
        """The samples in blocks; raises `BadAudio`."""
        if self.audio is not None:
            return iter([self.audio])
        return stream_audio(self.path, **self._piece())


@dataclass(frozen=True)
class Failure:
    """Clip number `index` cannot be used."""

    index: int
    reason: str
    message: str


@dataclass(frozen=True)
class Segment:
    """One row of a batch: a clip, or one of `windows` windows of a long clip.

    audio float32[n]; `statistics` (mean, variance) are those of the whole clip, which has
    `samples` samples and `frames` frames.
    """

    index: int
    audio: np.ndarray
    statistics: tuple[float, float]
    window: Window
    windows: int
    samples: int
    frames: int


def statistics(audio: np.ndarray) -> tuple[float, float]:
    """Mean and biased variance of float32[N], added up in float64."""
    exact = audio.astype(np.float64)
    mean = float(exact.mean())
    return mean, float(np.square(exact - mean).mean())


def estimate_lengths(clips: Sequence[Clip], threads: int) -> tuple[dict[int, int], list[Failure]]:
    """({index: samples} of the clips whose headers can be read, the failures of the others)."""

    def estimate(numbered: tuple[int, Clip]) -> int | Failure:
        try:
            return numbered[1].estimate()
        except BadAudio as error:
            return Failure(numbered[0], error.reason, str(error))

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(estimate, enumerate(clips), chunksize=1))
    good = {i: value for i, value in enumerate(found) if not isinstance(value, Failure)}
    return good, [value for value in found if isinstance(value, Failure)]


def decode(
    clips: Sequence[Clip],
    order: Iterable[int],
    *,
    long: frozenset[int],
    window: int,
    overlap: int,
    rule: FrameRule,
    threads: int,
) -> Iterator[Segment | Failure]:
    """Segments of the clips numbered by `order`, in that order; `long` ones are streamed.

    The windows of one clip follow each other. At most `_AHEAD` clips are decoded ahead.
    """
    cut = {"window": window, "overlap": overlap, "rule": rule}

    def start(index: int) -> "Failure | Segment | Iterator[Segment | Failure]":
        clip = clips[index]
        try:
            if index in long:
                return _stream_segments(index, clip, clip.scan(), **cut)
            audio = clip.read()
        except BadAudio as error:
            return Failure(index, error.reason, str(error))
        if len(audio) > window:  # the header promised less
            whole = Clip(clip.id, clip.path, audio=audio)
            return _stream_segments(index, whole, whole.scan(), **cut)
        T = rule.frames(len(audio))
        if not T:
            least = f"at least {rule.receptive} samples at 16 kHz are needed"
            return Failure(index, "too short", f"{clip.path}: {len(audio)} samples, {least}")
        only = Window(0, len(audio), 0, T, 0)
        return Segment(index, audio, statistics(audio), only, 1, len(audio), T)

    todo = iter(order)
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            while len(waiting) < _AHEAD and (index := next(todo, None)) is not None:
                waiting.append(pool.submit(start, index))
            if not waiting:
                return
            first = waiting.popleft().result()
            if isinstance(first, Segment | Failure):
                yield first
                continue
            following = pool.submit(next, first, None)
            while (segment := following.result()) is not None:
                following = pool.submit(next, first, None)
                yield segment
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _stream_segments(
    index: int,
    clip: Clip,
    scanned: tuple[int, float, float],
    *,
    window: int,
    overlap: int,
    rule: FrameRule,
) -> Iterator[Segment | Failure]:
    samples, mean, variance = scanned
    windows = plan_windows(samples, window=window, overlap=overlap, rule=rule)
    done = 0
    try:
        for plan, audio in zip(windows, cut_windows(clip.stream(), windows), strict=False):
            yield Segment(
                index, audio, (mean, variance), plan, len(windows), samples, rule.frames(samples)
            )
            done += 1
    except BadAudio as error:
        yield Failure(index, error.reason, str(error))
        return
    if done < len(windows):
        message = f"{clip.path}: became shorter while it was being read; extract it again"
        yield Failure(index, "unreadable", message)
