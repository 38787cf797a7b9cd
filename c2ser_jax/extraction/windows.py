"""Cuts long audio into overlapping windows whose kept frames cover the whole file exactly once.

A window starts at a multiple of the hop, so its frame k is frame `start / hop + k` of the file. Of
an overlap each side keeps its half: a kept frame then has at least half the overlap as context,
except at the ends of the file.

Legend: N samples of the file, T = frames(N), W samples of a window.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FrameRule:
    """The model's frames: one per `hop` samples, each seeing `receptive` samples."""

    hop: int = 320
    receptive: int = 400

    def frames(self, samples: int) -> int:
        """Number of frames of `samples` samples, 0 when there are too few for one."""
        return max(0, (samples - self.receptive) // self.hop + 1)


@dataclass(frozen=True)
class Window:
    """Samples [start, stop) of a file; of its frames [first, last) are kept, from `offset` on."""

    start: int
    stop: int
    first: int
    last: int
    offset: int


def plan_windows(samples: int, *, window: int, overlap: int, rule: FrameRule) -> list[Window]:
    """Windows of at most `window` samples for a file of `samples` samples, in order.

    Their kept frames are 0 … T-1, each once. One window when the file is not longer than `window`.
    `overlap` in samples must lie between 0 and `window - receptive - hop`.
    """
    total = rule.frames(samples)
    if samples <= window:
        return [Window(0, samples, 0, total, 0)]
    hop, each = rule.hop, rule.frames(window)
    shared = max(0, overlap // hop)
    step = each - shared
    if step < 1:
        raise ValueError(f"an overlap of {overlap} samples leaves no step in {window}")
    starts = list(range(0, max(1, total - each), step))
    starts.append(max(total - each, 0))  # the last window ends with the file
    windows = []
    for i, begin in enumerate(starts):
        offset = windows[-1].offset + windows[-1].last - windows[-1].first if windows else 0
        end = total
        if i + 1 < len(starts):
            end = starts[i + 1] + (begin + each - starts[i + 1]) // 2
        stop = samples if i + 1 == len(starts) else begin * hop + window
        stop = min(stop, begin * hop + window)
        windows.append(Window(begin * hop, stop, offset - begin, end - begin, offset))
    return windows


def cut_windows(blocks: Iterable[np.ndarray], windows: list[Window]) -> Iterator[np.ndarray]:
    """Samples float32[stop - start] of each window from consecutive blocks of the file.

    Keeps no more than a window and a block in memory. Ends early when the blocks end early.
    """
    held, start = np.zeros(0, np.float32), 0
    source = iter(blocks)
    for window in windows:
        if window.start > start:
            held, start = held[window.start - start :], max(start, window.start)
        while start + len(held) < window.stop:
            block = next(source, None)
            if block is None:
                return
            held = np.concatenate([held, block])
        yield held[window.start - start : window.stop - start].copy()
