"""The plan of compiled shapes: few, deterministic, little padding, never worse than it must be."""

import itertools

import numpy as np
import pytest

from c2ser_jax.extraction.shapes import CALL_SAMPLES, Shape, padding_factor, plan_shapes

WINDOW = 480_000


def plan(lengths, *, batch_seconds=32.0, compile_samples=48_000, **more):
    return plan_shapes(
        lengths,
        batch_samples=int(batch_seconds * 16000),
        largest=WINDOW,
        compile_samples=compile_samples,
        **more,
    )


def emodb_like(count=535, seed=3):
    """Lengths like EmoDB's: 1.2 to 9 s, most near 2.5 s."""
    seconds = np.random.default_rng(seed).gamma(6.0, 0.32, count) + 0.85
    return (np.clip(seconds, 1.2, 9.0) * 16000).astype(int)


def test_a_corpus_pads_little_in_at_most_twelve_shapes():
    lengths = emodb_like()
    for batch_seconds in (1, 8, 32, 240):
        shapes = plan(lengths, batch_seconds=batch_seconds)
        assert len(shapes) <= 12
        assert padding_factor(lengths, shapes) <= 1.1


def test_every_length_fits_and_the_order_of_the_list_does_not_matter():
    lengths = [400, 16_000, 33_333, 479_999, 480_000, 100_000]
    shapes = plan(lengths)
    assert max(shape.samples for shape in shapes) >= max(lengths)
    assert all(shape.samples <= WINDOW for shape in shapes)
    assert plan(lengths[::-1]) == shapes
    assert plan([]) == ()
    with pytest.raises(ValueError, match="longer"):
        plan([WINDOW + 1])


def test_rows_stay_within_the_batch_and_are_a_multiple_of_the_devices():
    lengths = emodb_like(200)
    for shape in plan(lengths, batch_seconds=20):
        assert shape.rows == 1 or shape.rows * shape.samples <= 20 * 16000
    for shape in plan(lengths, batch_seconds=20, row_multiple=4):
        assert shape.rows % 4 == 0
    assert all(shape.rows == 1 for shape in plan(lengths, batch_seconds=1))


def test_dear_compilation_buys_fewer_shapes():
    lengths = emodb_like()
    many, few = plan(lengths, compile_samples=0), plan(lengths, compile_samples=10**9)
    assert len(few) == 1 < len(many) == 12


def test_short_lists_draw_from_a_fixed_table():
    seen = set()
    for seed in range(40):
        seen |= set(plan(emodb_like(5, seed)))
    edges = {shape.samples for shape in seen}
    assert edges <= {int(s * 16000) for s in (1, 1.5, 2, 3, 4, 5, 6, 8, 10)}
    assert {shape.rows for shape in seen} <= {1, 2, 4, 8, 16}


def test_the_plan_is_the_best_one():
    """Against all ways to choose edges and row counts of a small fitted problem."""
    lengths = np.array([3200] * 20 + [4800] * 19 + [8000] * 11 + [16000] * 3)
    edges, most, limit, dear = [3200, 4800, 8000, 16000], 3, 48_000, 9000

    def work(chosen):
        total, low = 0, 0
        for edge in chosen:
            n = int(np.sum((lengths > low) & (lengths <= edge)))
            best = min(
                -(-n // rows) * (rows * edge + CALL_SAMPLES)
                for rows in range(1, max(1, limit // edge) + 1)
            )
            total, low = total + best + dear, edge
        return total

    choices = [
        (*inner, edges[-1])
        for size in range(most)
        for inner in itertools.combinations(edges[:-1], size)
    ]
    best = min(choices, key=work)
    shapes = plan_shapes(
        lengths, batch_samples=limit, largest=WINDOW, compile_samples=dear, most=most
    )
    assert tuple(shape.samples for shape in shapes) == best
    worse = [choice for choice in choices if choice != best]
    assert all(work(choice) > work(best) for choice in worse)


def test_padding_counts_empty_rows():
    assert padding_factor([100, 100, 50], [Shape(100, 2)]) == 400 / 250
