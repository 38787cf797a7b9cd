"""Brings clips (files, pieces of files, arrays) to the engine: lengths first, then segments.

A segment is a clip, or one window of a long clip; the frames that its windows keep are all frames
of the clip, each once: of an overlap each side keeps its half, so that a kept frame has at least
half the overlap as context, except at the ends of the clip.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2ser_jax.data.audio import SAMPLE_RATE, BadAudio, from_array, probe_audio
from c2ser_jax.data.loading import (
    Failed,
    Loaded,
    iterate_audio,
    load_array,
    window_samples,
    window_starts,
)
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import FileSource, Source
from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import Emotion2VecConfig

_LONGEST_SAMPLES = SAMPLE_RATE * 3600 * 100
RESAMPLING_SAMPLES = 2
"""How many samples too many an estimate by the header may count."""


@dataclass(frozen=True)
class Clip:
    """A file, or a piece of one, to be read in its turn; or samples float32[N] at 16 kHz."""

    id: str
    utterance: Utterance | None = None
    audio: np.ndarray | None = None

    @property
    def path(self) -> str:
        """The file, empty for samples."""
        return self.utterance.path if self.utterance else ""

    @classmethod
    def of(cls, utterance: Utterance) -> "Clip":
        """What a row of a manifest names."""
        return cls(utterance.id, utterance)

    @classmethod
    def of_file(cls, path: str) -> "Clip":
        """A whole file, named by its path."""
        return cls(path, Utterance(path, path))

    @classmethod
    def of_array(cls, clip_id: str, samples: Any, rate: int) -> "Clip":
        """Samples at `rate` Hz; raises `UserError` when they are unusable."""
        return cls(clip_id, audio=from_array(samples, rate, name=clip_id))

    def estimate(self) -> int:
        """Samples at 16 kHz by the header alone; raises `BadAudio`."""
        if self.audio is not None:
            return len(self.audio)
        assert self.utterance is not None
        start, end = self.utterance.start or 0.0, self.utterance.end
        info = probe_audio(self.path)
        stop = info.seconds if end is None else min(info.seconds, end)
        samples = round((stop - start) * SAMPLE_RATE)
        if info.rate != SAMPLE_RATE:
            samples += RESAMPLING_SAMPLES  # the resampler may round up
        return min(_LONGEST_SAMPLES, max(0, samples))


def clips_of(source: Source, utterances: Sequence[Utterance]) -> list[Clip]:
    """Clips of a source's utterances: files are read in their turn, other audio is there already.

    Raises `BadAudio` for audio in memory that cannot be used.
    """
    if isinstance(source, FileSource):
        return [Clip.of(utterance) for utterance in utterances]
    places = {utterance.id: place for place, utterance in enumerate(source.utterances)}
    return [Clip(u.id, audio=source.load(places[u.id])[0]) for u in utterances]


@dataclass(frozen=True)
class Failure:
    """Clip number `index` cannot be used."""

    index: int
    reason: str
    message: str


@dataclass(frozen=True)
class Kept:
    """Frames [first, last) of a segment are those from `offset` on of its clip."""

    first: int
    last: int
    offset: int


@dataclass(frozen=True)
class Segment:
    """One row of a batch: a clip, or one of `windows` windows of a long one.

    audio float32[n]; statistics float64[2] (mean, variance) are those of the whole clip, which has
    `samples` samples and `frames` frames.
    """

    index: int
    audio: np.ndarray
    statistics: np.ndarray
    kept: Kept
    windows: int
    samples: int
    frames: int


@dataclass(frozen=True)
class Cutting:
    """How long clips are cut: windows of `window_seconds`, `overlap_seconds` of them shared.

    Both are rounded down to whole frames of the model that hears them.
    """

    window_seconds: float = 30.0
    overlap_seconds: float = 5.0

    def samples(self, model: Emotion2VecConfig) -> tuple[int, int]:
        """(window, overlap) in samples, multiples of the model's hop.

        Raises:
          UserError: they are impossible, or the overlap is shorter than what a frame hears.
        """
        hop = model.hop_samples
        size, overlap = window_samples(self.window_seconds, self.overlap_seconds, hop)
        if overlap < model.receptive_samples - hop:
            raise UserError(
                f"windows that share {self.overlap_seconds} s lose the frames across their seams, "
                f"which hear {model.receptive_samples} samples; give longer windows"
            )
        return size, overlap

    def starts(self, samples: int, model: Emotion2VecConfig) -> list[int]:
        """First sample of every segment of a clip of `samples` samples."""
        size, overlap = self.samples(model)
        if samples <= size:
            return [0]
        return window_starts(samples, size, overlap, model.hop_samples)

    def segment_lengths(self, samples: int, model: Emotion2VecConfig) -> list[int]:
        """Samples of every segment of a clip of `samples` samples."""
        size, _ = self.samples(model)
        return [min(size, samples - start) for start in self.starts(samples, model)]

    def kept(self, index: int, samples: int, model: Emotion2VecConfig) -> Kept:
        """What window `index` of a clip of `samples` samples contributes."""
        size, _ = self.samples(model)
        starts = [start // model.hop_samples for start in self.starts(samples, model)]
        each = int(model.frames(size))

        def border(window: int) -> int:
            """First frame of the clip that `window` keeps."""
            if window == 0:
                return 0
            shared = starts[window - 1] + each - starts[window]
            return starts[window] + shared // 2

        end = int(model.frames(samples)) if index + 1 == len(starts) else border(index + 1)
        return Kept(border(index) - starts[index], end - starts[index], border(index))


def estimate_lengths(clips: Sequence[Clip], threads: int) -> tuple[dict[int, int], list[Failure]]:
    """({index: samples} of the clips whose headers can be read, the failures of the others)."""

    def estimate(numbered: tuple[int, Clip]) -> int | Failure:
        try:
            return numbered[1].estimate()
        except BadAudio as error:
            return Failure(numbered[0], error.reason, str(error))

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(estimate, enumerate(clips)))
    good = {i: value for i, value in enumerate(found) if not isinstance(value, Failure)}
    return good, [value for value in found if isinstance(value, Failure)]


def decode(
    clips: Sequence[Clip],
    order: Iterable[int],
    model: Emotion2VecConfig,
    cutting: Cutting,
    threads: int,
) -> Iterator[Segment | Failure]:
    """Segments of the clips numbered by `order`: arrays first, else in that order.

    The windows of one clip follow each other. Files are decoded ahead by `threads`.
    """
    order = list(order)
    settings = {**dataclasses.asdict(cutting), "hop_samples": model.hop_samples}
    # Copies, so that an utterance given twice keeps its two places.
    rows = {
        i: dataclasses.replace(clips[i].utterance or Utterance(clips[i].id, clips[i].id))
        for i in order
    }
    place = {id(row): i for i, row in rows.items()}
    for index in order:
        audio = clips[index].audio
        if audio is not None:
            try:
                for item in load_array(rows[index], audio, **settings):
                    yield _segment(index, item, model, cutting)
            except BadAudio as error:
                yield Failure(index, error.reason, str(error))
    files = [rows[i] for i in order if clips[i].audio is None]
    for item in iterate_audio(files, threads=threads, allow_silent=True, **settings):
        index = place[id(item.utterance)]
        if isinstance(item, Failed):
            yield Failure(index, item.reason, item.message)
        else:
            yield _segment(index, item, model, cutting)


def _segment(
    index: int, item: Loaded, model: Emotion2VecConfig, cutting: Cutting
) -> Segment | Failure:
    samples = len(item.audio) if item.window is None else item.window.total_samples
    frames = int(model.frames(samples))
    if not frames:
        least = f"at least {model.receptive_samples} samples at 16 kHz are needed"
        return Failure(index, "too short", f"{item.utterance.path}: {samples} samples, {least}")
    kept, windows = Kept(0, frames, 0), 1
    if item.window is not None:
        kept, windows = cutting.kept(item.window.index, samples, model), item.window.count
    return Segment(index, item.audio, item.statistics, kept, windows, samples, frames)
