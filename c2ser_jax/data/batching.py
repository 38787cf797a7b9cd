"""Which rows make which batch: length buckets and a plan that is a pure function of seed and step.

Shapes: N rows of the data, B rows of a batch, K buckets, G groups (classes, labelled or not).
A row index of -1 is an empty row that only fills the batch's shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from c2ser_jax.errors import UserError

QUANTUM = 1600  # bucket edges are multiples of 0.1 s


def bucket_edges(lengths: np.ndarray, buckets: int, *, quantum: int = QUANTUM) -> list[int]:
    """Returns at most `buckets` ascending edges (samples) that pad int[N] lengths the least.

    Exact dynamic programme over the distinct lengths, rounded up to `quantum`.
    """
    lengths = np.asarray(lengths)
    if not len(lengths) or buckets < 1:
        raise UserError("length buckets need at least one utterance and one bucket")
    rounded = -(-lengths // quantum) * quantum
    edges, counts = np.unique(rounded, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: least padded samples of the first j distinct lengths with k buckets
    cost = np.concatenate([[0.0], np.full(len(edges), np.inf)])
    choices = []
    for _ in range(min(buckets, len(edges))):
        held = total[1:, None] - total[None, :-1]  # rows between cut i and edge j
        options = cost[None, :-1] + np.where(held > 0, edges[:, None] * held, np.inf)
        best = options.argmin(axis=1)
        cost = np.concatenate([[0.0], options[np.arange(len(edges)), best]])
        choices.append(best)
    result, place = [], len(edges)
    for best in reversed(choices):
        if place == 0:
            break
        result.append(int(edges[place - 1]))
        place = int(best[place - 1])
    return result[::-1]


def assign_buckets(lengths: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """Returns int[N]: the first bucket whose edge holds each length; the longest go to the last."""
    place = np.searchsorted(np.asarray(edges), np.asarray(lengths), side="left")
    return np.minimum(place, len(edges) - 1)


def bucket_rows(
    edges: Sequence[int], batch_samples: int, *, row_multiple: int = 1, max_rows: int | None = None
) -> list[int]:
    """Returns rows per batch of each bucket: as many as fit in `batch_samples`, in multiples."""
    rows = []
    for edge in edges:
        fit = batch_samples // edge if max_rows is None else min(batch_samples // edge, max_rows)
        rows.append(max(row_multiple, int(fit) // row_multiple * row_multiple))
    return rows


@dataclass(frozen=True)
class PlannedBatch:
    """`bucket` names the length, `rows` int[B] the data rows (-1 = empty)."""

    bucket: int
    rows: np.ndarray


class BatchPlan:
    """Endless shuffled batches: `batch(step)` depends on nothing but the arguments given here.

    Every epoch holds the same number of batches. What does not fill a batch of its bucket moves
    to the next longer one; only the last batch of the longest bucket may have empty rows.
    With `groups` int[N], rows of a group are spread evenly over the epoch; with `shares`
    float[G] too, each group takes that share of the rows (small groups repeat, large ones are
    thinned by other rows every epoch).
    """

    def __init__(
        self,
        lengths: np.ndarray,
        edges: Sequence[int],
        rows: Sequence[int],
        *,
        seed: int,
        groups: np.ndarray | None = None,
        shares: np.ndarray | None = None,
    ):
        self.edges, self.rows, self.seed = list(edges), list(rows), seed
        bucket = assign_buckets(lengths, edges)
        self._members = [np.flatnonzero(bucket == k) for k in range(len(edges))]
        self._groups = None if groups is None else np.asarray(groups)
        self._shares = None if shares is None else np.asarray(shares, np.float64)
        self._recent: dict[int, list[PlannedBatch]] = {}
        self.steps_per_epoch = self._count()

    def batch(self, step: int) -> PlannedBatch:
        """Returns the batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batches = self._recent.get(epoch)
        if batches is None:  # two epochs are kept: reading ahead crosses from one to the next
            batches = self.epoch(epoch)
            self._recent = {e: b for e, b in self._recent.items() if e == epoch - 1}
            self._recent[epoch] = batches
        return batches[place]

    def epoch(self, epoch: int) -> list[PlannedBatch]:
        """Returns all batches of an epoch, in order."""
        batches = []
        carried = np.zeros(0, np.int64)
        for k, size in enumerate(self.rows):
            rng = np.random.default_rng([self.seed, epoch, k])
            order = self._order(np.concatenate([self._members[k], carried]), rng)
            full = len(order) // size * size
            batches += [PlannedBatch(k, order[i : i + size]) for i in range(0, full, size)]
            carried = order[full:]
        if len(carried):
            fill = np.full(self.rows[-1] - len(carried), -1)
            batches.append(PlannedBatch(len(self.rows) - 1, np.concatenate([carried, fill])))
        rng = np.random.default_rng([self.seed, epoch, len(self.rows)])
        return [batches[i] for i in rng.permutation(len(batches))]

    def shapes(self) -> list[tuple[int, int]]:
        """Returns the (B, samples) shapes that occur."""
        used = sorted({batch.bucket for batch in self.epoch(0)})
        return [(self.rows[k], self.edges[k]) for k in used]

    def _count(self) -> int:
        batches, carried = 0, 0
        for members, size in zip(self._members, self.rows, strict=True):
            more, carried = divmod(len(members) + carried, size)
            batches += more
        return batches + (carried > 0)

    def _order(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Shuffles int[n] members; with groups, evenly interleaved and in their shares."""
        if self._groups is None or not len(members):
            return rng.permutation(members)
        groups = self._groups[members]
        present, counts = np.unique(groups, return_counts=True)
        targets = counts
        if self._shares is not None:
            targets = _round_to_sum(self._shares[present], len(members))
        places, chosen = [], []
        for group, target in zip(present, targets, strict=True):
            own = members[groups == group]
            turns = [rng.permutation(own) for _ in range(-(-int(target) // len(own)))]
            chosen += turns and [np.concatenate(turns)[:target]]
            places.append((np.arange(target) + rng.random()) / max(target, 1))
        return np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")]


def evaluation_batches(
    lengths: np.ndarray, edges: Sequence[int], rows: Sequence[int]
) -> list[PlannedBatch]:
    """Returns batches that hold every row once, by bucket; the last of each is filled up."""
    bucket = assign_buckets(lengths, edges)
    batches = []
    for k, size in enumerate(rows):
        members = np.flatnonzero(bucket == k)
        padded = np.concatenate([members, np.full(-len(members) % size, -1)]).astype(np.int64)
        batches += [PlannedBatch(k, padded[i : i + size]) for i in range(0, len(padded), size)]
    return batches


def padding_factor(lengths: np.ndarray, edges: Sequence[int]) -> float:
    """Samples computed per real sample when every row is padded to its bucket's edge."""
    lengths = np.minimum(lengths, edges[-1])
    return float(np.asarray(edges)[assign_buckets(lengths, edges)].sum() / lengths.sum())


def _round_to_sum(shares: np.ndarray, total: int) -> np.ndarray:
    """Splits `total` into whole parts in proportion to float[G] shares (largest remainders)."""
    if shares.sum() <= 0:
        shares = np.ones_like(shares)
    exact = shares / shares.sum() * total
    parts = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: total - parts.sum()]] += 1
    return parts
