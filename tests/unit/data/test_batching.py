"""Buckets pad the least possible; the plan is a pure function of seed and step."""

import itertools
from collections import Counter

import numpy as np
import pytest

from c2ser_jax.data.batching import (
    BatchPlan,
    assign_buckets,
    bucket_edges,
    bucket_rows,
    evaluation_batches,
    padding_factor,
)
from c2ser_jax.errors import UserError


def lengths(count=300, seed=0):
    return np.random.default_rng(seed).integers(8000, 160_000, count)


def padded(values, edges):
    return np.asarray(edges)[assign_buckets(values, edges)].sum()


@pytest.mark.parametrize("buckets", [1, 2, 3])
def test_edges_are_the_best_of_all_choices(buckets):
    values = np.random.default_rng(1).integers(1, 30, 40) * 50
    quantum = 100
    candidates = sorted({int(-(-v // quantum) * quantum) for v in values})
    choices = itertools.combinations(candidates[:-1], buckets - 1)
    best = min(padded(values, [*choice, candidates[-1]]) for choice in choices)
    edges = bucket_edges(values, buckets, quantum=quantum)
    assert padded(values, edges) == best and len(edges) == buckets
    assert all(edge % quantum == 0 for edge in edges)


def test_more_buckets_than_lengths_pad_only_to_the_quantum():
    edges = bucket_edges(np.array([1600, 3200, 3200]), 8)
    assert edges == [1600, 3200]
    assert padding_factor(np.array([1600, 3200]), edges) == 1.0
    with pytest.raises(UserError, match="at least one utterance"):
        bucket_edges(np.array([], int), 3)


def test_rows_fill_the_batch_in_multiples():
    assert bucket_rows([1000, 3000, 9000, 90_000], 36_000, row_multiple=4) == [36, 12, 4, 4]
    assert bucket_rows([1000], 36_000, max_rows=10, row_multiple=4) == [8]


def plan(values=None, seed=0, **options):
    values = lengths() if values is None else values
    edges = bucket_edges(values, 4)
    return BatchPlan(values, edges, bucket_rows(edges, 800_000), seed=seed, **options)


def test_every_epoch_holds_every_row_once_in_the_same_number_of_batches():
    values = lengths()
    for seed in range(5):
        made = plan(values, seed)
        for epoch in (0, 1, 7):
            batches = made.epoch(epoch)
            assert len(batches) == made.steps_per_epoch
            rows = np.concatenate([batch.rows for batch in batches])
            assert sorted(rows[rows >= 0]) == list(range(len(values)))
            assert (rows < 0).sum() < made.rows[-1]
            for batch in batches:
                assert len(batch.rows) == made.rows[batch.bucket]
                assert values[batch.rows[batch.rows >= 0]].max() <= made.edges[batch.bucket]


def test_a_batch_depends_on_seed_and_step_only():
    one = plan()
    for step in (0, 3 * one.steps_per_epoch + 2, 5, 1):
        np.testing.assert_array_equal(one.batch(step).rows, plan().batch(step).rows)
    assert any(not np.array_equal(one.batch(s).rows, plan(seed=1).batch(s).rows) for s in range(5))
    first, second = one.epoch(0), one.epoch(1)
    assert any(not np.array_equal(a.rows, b.rows) for a, b in zip(first, second, strict=True))


def test_shapes_are_those_that_occur():
    made = plan()
    shapes = {(len(b.rows), made.edges[b.bucket]) for e in range(3) for b in made.epoch(e)}
    assert shapes == set(made.shapes()) and len(shapes) <= 4


def test_stratified_batches_hold_every_class_in_proportion():
    values = np.full(320, 16_000)
    groups = np.repeat([0, 1, 2], [160, 128, 32])
    made = BatchPlan(values, [16_000], [20], seed=0, groups=groups)
    for batch in made.epoch(0):
        counts = Counter(groups[batch.rows])
        assert abs(counts[0] - 10) <= 1 and abs(counts[1] - 8) <= 1 and abs(counts[2] - 2) <= 1
    shuffled = BatchPlan(values, [16_000], [20], seed=0).epoch(0)
    assert any(abs(Counter(groups[b.rows])[0] - 10) > 1 for b in shuffled)
    rows = np.concatenate([b.rows for b in made.epoch(0)])
    assert sorted(rows) == list(range(320))


def test_balanced_batches_repeat_small_groups_and_thin_large_ones():
    values = np.full(300, 16_000)
    groups = np.repeat([1, 2, 3], [240, 50, 10])
    made = BatchPlan(
        values, [16_000], [15], seed=0, groups=groups, shares=np.array([0, 1 / 3, 1 / 3, 1 / 3])
    )
    assert made.steps_per_epoch == 20
    seen = set()
    for epoch in range(20):
        for batch in made.epoch(epoch):
            counts = Counter(groups[batch.rows])
            assert all(abs(counts[g] - 5) <= 1 for g in (1, 2, 3))
            seen.update(batch.rows.tolist())
    assert len(seen) == 300  # thinned rows come in other epochs


def test_evaluation_holds_every_row_exactly_once():
    values = lengths(77)
    edges = bucket_edges(values, 3)
    batches = evaluation_batches(values, edges, [16, 8, 4])
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows[rows >= 0]) == list(range(77))
    assert {(b.bucket, len(b.rows)) for b in batches} <= {(0, 16), (1, 8), (2, 4)}
