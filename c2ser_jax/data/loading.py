"""Audio for inference: decoded ahead in threads, long recordings in windows, bad ones reported.

Shapes: N samples of an utterance or window at 16 kHz, W samples of a full window.
Memory is bounded by the window length times the number of threads, however long the recordings.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from c2ser_jax.data.audio import (
    SAMPLE_RATE,
    BadAudio,
    RunningScan,
    stream_audio,
)
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.errors import UserError

HOP_SAMPLES = 320
"""Samples per frame of the published encoders: windows start on the grid of their frames."""


@dataclass(frozen=True)
class Window:
    """One of `count` windows of a long utterance.

    It starts at sample `start_samples` of the utterance, a multiple of the hop, so its frames are
    frames of the utterance, and shares `overlap_samples` with the window before it (0 for the
    first). `total_samples` is the length of the whole utterance.
    """

    index: int
    count: int
    start_samples: int
    overlap_samples: int
    total_samples: int

    @property
    def last(self) -> bool:
        """Whether the utterance ends with this window."""
        return self.index == self.count - 1


@dataclass(frozen=True)
class Loaded:
    """A whole utterance (`window` None) or one window of a long one.

    `audio` is float32[N]; `statistics` float64[2] are mean and population variance of the WHOLE
    utterance; `seconds` its whole length; `sha256` the checksum of its samples (`audio_sha256`).
    """

    utterance: Utterance
    audio: np.ndarray
    statistics: np.ndarray
    seconds: float
    sha256: str
    window: Window | None = None


@dataclass(frozen=True)
class Failed:
    """An utterance that cannot be used: one word of `audio.REASONS`, and a sentence."""

    utterance: Utterance
    reason: str
    detail: str

    @property
    def message(self) -> str:
        """File and sentence, as a `BadAudio` prints them."""
        return f"{self.utterance.path}: {self.detail}"


def iterate_audio(
    utterances: Iterable[Utterance],
    *,
    window_seconds: float = 30.0,
    overlap_seconds: float = 2.0,
    hop_samples: int = HOP_SAMPLES,
    threads: int = 2,
    allow_silent: bool = False,
) -> Iterator[Loaded | Failed]:
    """Yields every utterance in the given order, decoded ahead by `threads`.

    An utterance of at most `window_seconds` comes as one `Loaded`; a longer one as its windows,
    one after another, after a first pass that computes the statistics and finds any defect: a
    `Failed` after some windows means that the file changed meanwhile. The last window begins
    earlier, so that it is full too (but for less than a hop of `hop_samples`). What cannot be used
    comes as one `Failed` in its place. Raises `UserError` for impossible window settings.
    """
    size, overlap = window_samples(window_seconds, overlap_seconds, hop_samples)

    def look(utterance: Utterance) -> Loaded | Failed | RunningScan:
        try:
            return _look(utterance, size, allow_silent)
        except BadAudio as error:
            return Failed(utterance, error.reason, error.detail)

    pool = ThreadPoolExecutor(threads)
    waiting: deque[tuple[Utterance, Future]] = deque()
    rows = iter(utterances)
    try:
        while True:
            while len(waiting) < 2 * threads and (row := next(rows, None)) is not None:
                waiting.append((row, pool.submit(look, row)))
            if not waiting:
                return
            utterance, future = waiting.popleft()
            found = future.result()
            if not isinstance(found, RunningScan):
                yield found
                continue
            try:
                yield from _cut(utterance, _blocks(utterance), found, size, overlap, hop_samples)
            except BadAudio as error:
                yield Failed(utterance, error.reason, error.detail)
    finally:
        pool.shutdown(cancel_futures=True)


def load_array(
    utterance: Utterance,
    audio: np.ndarray,
    *,
    window_seconds: float = 30.0,
    overlap_seconds: float = 2.0,
    hop_samples: int = HOP_SAMPLES,
) -> Iterator[Loaded]:
    """As `iterate_audio` for one utterance already in memory, float32[N] 16 kHz mono."""
    size, overlap = window_samples(window_seconds, overlap_seconds, hop_samples)
    scan = RunningScan(utterance.path)
    scan.add(audio)
    if len(audio) <= size:
        yield _whole(utterance, audio, scan)
    else:
        yield from _cut(utterance, iter([audio]), scan, size, overlap, hop_samples)


def window_samples(
    window_seconds: float, overlap_seconds: float, hop_samples: int = HOP_SAMPLES
) -> tuple[int, int]:
    """Returns window and overlap in samples, multiples of the hop.

    Raises `UserError` for less than a second, or an overlap of more than half the window.
    """
    size, overlap = (
        round(seconds * SAMPLE_RATE) // hop_samples * hop_samples
        for seconds in (window_seconds, overlap_seconds)
    )
    if window_seconds < 1 or not 0 <= overlap <= size // 2:
        raise UserError(
            f"windows of {window_seconds} s with an overlap of {overlap_seconds} s are not "
            "possible; give at least 1 s, and an overlap of at most half of it"
        )
    return size, overlap


def window_starts(
    samples: int, size: int, overlap: int, hop_samples: int = HOP_SAMPLES
) -> list[int]:
    """Returns the first sample, a multiple of the hop, of every window of a long utterance.

    Of `samples` samples, more than one window of `size` with `overlap`, both from `window_samples`.
    """
    final = -(-(samples - size) // hop_samples) * hop_samples
    return [*range(0, final, size - overlap), final]


def _look(utterance: Utterance, size: int, allow_silent: bool) -> Loaded | RunningScan:
    """Decodes once: the utterance when it fits one window, else only its scan."""
    scan = RunningScan(utterance.path)
    kept: list[np.ndarray] = []
    for block in _blocks(utterance):
        scan.add(block)
        kept = [*kept, block] if scan.samples <= size else []
    scan.result(allow_silent=allow_silent)
    return _whole(utterance, np.concatenate(kept), scan) if kept else scan


def _blocks(utterance: Utterance) -> Iterator[np.ndarray]:
    return stream_audio(
        utterance.path,
        start_seconds=utterance.start,
        end_seconds=utterance.end,
        channel=utterance.channel,
    )


def _whole(utterance: Utterance, audio: np.ndarray, running: RunningScan) -> Loaded:
    scan = running.result()
    statistics = np.array([scan.mean, scan.variance])
    return Loaded(utterance, audio, statistics, scan.seconds, scan.sha256)


def _cut(
    utterance: Utterance,
    blocks: Iterator[np.ndarray],
    running: RunningScan,
    size: int,
    overlap: int,
    hop_samples: int,
) -> Iterator[Loaded]:
    """Cuts a stream of blocks into windows, holding no more than a window and a block.

    Raises `BadAudio` when the stream ends before the samples that `running` has seen.
    """
    scan = running.result()
    statistics = np.array([scan.mean, scan.variance])
    starts = window_starts(scan.samples, size, overlap, hop_samples)
    held, first = np.zeros(0, np.float32), 0  # held[0] is sample `first`
    end = 0
    for index, start in enumerate(starts):
        stop = min(start + size, scan.samples)
        while first + len(held) < stop:
            block = next(blocks, None)
            if block is None:
                detail = "shorter than it was a moment ago; give files that nobody writes to"
                raise BadAudio(utterance.path, "unreadable", detail)
            held = np.concatenate([held[max(0, start - first) :], block])
            first = max(first, start)
        shared = max(0, end - start)
        end = stop
        window = Window(index, len(starts), start, shared, scan.samples)
        audio = held[start - first : stop - first].copy()
        yield Loaded(utterance, audio, statistics, scan.seconds, scan.sha256, window)
