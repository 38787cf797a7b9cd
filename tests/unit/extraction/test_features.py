"""Pieces become clips again: exact frames, frame-weighted means, the published slice."""

import numpy as np
import pytest

from c2ser_jax.extraction.clips import Kept
from c2ser_jax.extraction.engine import Piece
from c2ser_jax.extraction.features import Assembler

FRAMES = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
BORDERS = (0, 2, 3, 9)


def pieces(index, values):
    """One piece per stretch of `BORDERS`; `values(first, last)` are its outputs."""
    for first, last in zip(BORDERS, BORDERS[1:], strict=False):
        kept = Kept(1, 1 + last - first, first)
        yield Piece(index, kept, 3, 9 * 320 + 80, 9, last == 9, values(first, last))


def gathered(assembler, parts):
    found = [assembler.add(part) for part in parts]
    assert all(value is None for value in found[:-1])
    return found[-1]


def test_frames_of_interleaved_clips_are_joined_in_order():
    assembler = Assembler.of("frame", "model", 5)
    streams = [pieces(i, lambda a, b, i=i: {"frames": FRAMES[a:b] + i}) for i in (0, 1)]
    found = {}
    for together in zip(*streams, strict=True):
        for piece in together:
            value = assembler.add(piece)
            if value is not None:
                found[piece.index] = value
    np.testing.assert_array_equal(found[0], FRAMES)
    np.testing.assert_array_equal(found[1], FRAMES + 1)


@pytest.mark.parametrize("granularity, output", [("utterance", "pooled"), ("tokens", "tokens")])
def test_means_weigh_windows_by_the_frames_they_keep(granularity, output):
    values = lambda a, b: {output: np.tile(FRAMES[a:b].mean(0), (5, 1))}  # noqa: E731
    found = gathered(Assembler.of(granularity, "model", 5), pieces(0, values))
    np.testing.assert_allclose(found, np.tile(FRAMES.mean(0), (5, 1)), atol=1e-6)
    assert found.dtype == np.float32


def test_published_tokens_are_the_first_frames_across_windows():
    for tokens in (1, 2, 3, 5, 12):
        assembler = Assembler.of("tokens", "published", tokens)
        found = gathered(assembler, pieces(0, lambda a, b: {"frames": FRAMES[a:b]}))
        np.testing.assert_array_equal(found, FRAMES[:tokens])


def test_a_dropped_clip_leaves_nothing_behind():
    assembler = Assembler.of("frame", "model", 5)
    first, *_ = pieces(0, lambda a, b: {"frames": FRAMES[a:b]})
    assembler.add(first)
    assembler.drop(0)
    again = gathered(assembler, pieces(0, lambda a, b: {"frames": FRAMES[a:b]}))
    np.testing.assert_array_equal(again, FRAMES)
