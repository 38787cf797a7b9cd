"""Chooses the few (rows, samples) shapes that one run compiles, from the lengths it will meet.

A length is rounded up to the edge of its bucket; a bucket runs in batches of a fixed number of
rows. Both cost padding: samples behind an utterance, and empty rows of a last batch. `plan_shapes`
finds the set of shapes with the least work for the given lengths, exactly and deterministically.

Legend: L candidate edges in samples, K shapes, n segments in a bucket.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from c2ser_jax.data.audio import SAMPLE_RATE

TABLE_SECONDS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)
"""Edges for short lists, the same in every run, so that the compilation cache serves the next."""
LONG_LIST = 48
"""From this many segments on, edges are fitted to the list."""
QUANTUM_SAMPLES = 1600
"""Fitted edges are multiples of this, 0.1 s."""
MOST_SHAPES = 12
CALL_SAMPLES = 12_000
"""Work of starting a batch, as samples of audio (measured for the base size on 2 cores)."""


@dataclass(frozen=True, order=True)
class Shape:
    """One compiled shape: batches of `rows` segments of up to `samples` samples."""

    samples: int
    rows: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.samples / SAMPLE_RATE:.1f} s"


def plan_shapes(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_samples: int,
    largest: int,
    compile_samples: int,
    most: int = MOST_SHAPES,
    row_multiple: int = 1,
) -> tuple[Shape, ...]:
    """At most `most` shapes, ascending in samples, for segments of `lengths` int[n] samples.

    `batch_samples` bounds rows x samples of a shape (one row, or `row_multiple` rows, always fit);
    `largest` in samples bounds the edges, and no length may exceed it. `compile_samples` is the
    work of compiling one more shape, as samples of audio that could be computed meanwhile. Equal
    lengths give equal shapes, whatever their order.
    """
    lengths = np.sort(np.asarray(lengths, np.int64))
    if not len(lengths):
        return ()
    if lengths[-1] > largest:
        raise ValueError(f"a segment of {lengths[-1]} samples is longer than {largest}")
    fitted = len(lengths) >= LONG_LIST
    edges = _candidate_edges(lengths, largest, fitted)
    # below[j]: how many lengths are <= edges[j]; bucket (i, j] holds those in between
    below = np.concatenate([[0], np.searchsorted(lengths, edges, side="right")])
    K, L = min(most, len(edges)), len(edges)
    best = np.full((K + 1, L + 1), np.inf)
    best[:, 0] = 0.0
    cut = np.zeros((K + 1, L + 1), np.int64)
    for j in range(1, L + 1):
        counts = below[j] - below[:j]
        cost = _bucket_costs(counts, int(edges[j - 1]), batch_samples, row_multiple, fitted)
        for k in range(1, K + 1):
            total = best[k - 1, :j] + cost + compile_samples * (counts > 0)
            cut[k, j] = int(np.argmin(total))
            best[k, j] = total[cut[k, j]]
    k, j, shapes = int(np.argmin(best[:, L])), L, []
    while j > 0:
        i = int(cut[k, j])
        n, edge = int(below[j] - below[i]), int(edges[j - 1])
        if n:
            shapes.append(Shape(edge, _best_rows(n, edge, batch_samples, row_multiple, fitted)))
        k, j = k - 1, i
    return tuple(sorted(shapes))


def padding_factor(lengths: Sequence[int] | np.ndarray, shapes: Sequence[Shape]) -> float:
    """Samples computed, padding and empty rows included, per sample of audio."""
    lengths = np.asarray(lengths, np.int64)
    bucket = np.searchsorted([shape.samples for shape in shapes], lengths)
    work = 0
    for i, shape in enumerate(shapes):
        work += math.ceil(int(np.sum(bucket == i)) / shape.rows) * shape.rows * shape.samples
    return work / max(1, int(lengths.sum()))


def _candidate_edges(lengths: np.ndarray, largest: int, fitted: bool) -> np.ndarray:
    """Ascending edges int64[L], the last of which holds the longest length."""
    if fitted:
        edges = np.unique(-(-lengths // QUANTUM_SAMPLES) * QUANTUM_SAMPLES)
    else:
        table = np.array([int(seconds * SAMPLE_RATE) for seconds in TABLE_SECONDS])
        table = np.append(table[table < largest], largest)
        edges = np.unique(table[np.searchsorted(table, lengths)])
    return np.unique(np.minimum(edges, largest))


def _row_choices(edge: int, batch_samples: int, row_multiple: int) -> tuple[int, list[int]]:
    """Most rows of a batch with this edge, and the powers of two (times the multiple) up to it."""
    full = max(1, batch_samples // (edge * row_multiple))
    powers = [1 << p for p in range(full.bit_length())]
    return full * row_multiple, [row_multiple * p for p in sorted({*powers, full})]


def _bucket_costs(
    counts: np.ndarray, edge: int, batch_samples: int, row_multiple: int, fitted: bool
) -> np.ndarray:
    """Work float64[j] in samples of buckets with `counts` int[j] segments and one edge."""
    full, choices = _row_choices(edge, batch_samples, row_multiple)
    costs = [-(-counts // rows) * (rows * edge + CALL_SAMPLES) for rows in choices]
    if fitted:
        batches = -(-counts // full)
        even = -(-counts // np.maximum(batches, 1))  # rows when the batches are filled evenly
        even = -(-even // row_multiple) * row_multiple
        costs.append(batches * (even * edge + CALL_SAMPLES))
    return np.where(counts > 0, np.min(costs, axis=0), 0.0)


def _best_rows(n: int, edge: int, batch_samples: int, row_multiple: int, fitted: bool) -> int:
    """Rows of a batch in a bucket of n segments; only powers of two unless edges are fitted."""
    full, choices = _row_choices(edge, batch_samples, row_multiple)
    if fitted:
        even = math.ceil(n / math.ceil(n / full))
        choices = [*choices, math.ceil(even / row_multiple) * row_multiple]
    return min(
        choices, key=lambda rows: (math.ceil(n / rows) * (rows * edge + CALL_SAMPLES), -rows)
    )
