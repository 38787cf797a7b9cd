import functools

import jax
import numpy as np
import pytest

from c2ser_jax.models.data2vec import Data2VecConfig, draw_masks
from c2ser_jax.models.masking import block_mask, kept_frames, span_masks, span_masks_numpy

FRAMES = np.array([60, 41, 17, 3, 1, 0], np.int32)


@functools.cache
def draw(sampler, **changes):
    config = Data2VecConfig(mask_sampler=sampler, **changes)
    return np.asarray(drawn(keys(), FRAMES, 64, config))


drawn = jax.jit(draw_masks, static_argnums=(2, 3))


@functools.cache
def keys():
    return jax.random.split(jax.random.key(0), len(FRAMES))


def test_block_masks_hide_an_exact_share_of_each_rows_real_frames():
    masks = draw("block")
    assert masks.sum(1).tolist() == [30, 20, 8, 1, 0, 0]
    for row, frames in zip(masks, FRAMES, strict=True):
        assert not row[frames:].any()


@pytest.mark.parametrize("probability", [0.05, 0.29, 0.5, 0.65, 0.8])
def test_the_longest_row_keeps_the_most_frames(probability):
    kept = [kept_frames(frames, probability) for frames in range(300)]
    assert all(b - a in (0, 1) for a, b in zip(kept, kept[1:], strict=False))
    config = Data2VecConfig(mask_prob=probability)
    masks = draw("block", mask_prob=probability)
    assert ((FRAMES - masks.sum(1)) <= config.kept_frames(64)).all()
    assert masks.sum(1).tolist() == [int(n * probability) for n in FRAMES]


def test_a_rows_mask_depends_on_its_own_key_and_length_only():
    config, together = Data2VecConfig(), draw("block")
    alone = np.asarray(drawn(keys()[1:2], FRAMES[1:2], 64, config))
    np.testing.assert_array_equal(together[1], alone[0])
    other = np.asarray(drawn(keys()[2:3], FRAMES[1:2], 64, config))
    assert (other[0] != together[1]).any()


def test_span_masks_leave_padding_and_the_last_frame():
    masks = draw("span", mask_prob=0.65)
    for row, frames in zip(masks, FRAMES, strict=True):
        assert not row[max(frames - 1, 0) :].any()
    assert (masks[:3].sum(1) > 0).all()


def test_same_counts_ignore_padding_rows():
    sample = jax.jit(functools.partial(span_masks, length=64, mask_prob=0.5, mask_length=5))
    counts = np.asarray(sample(jax.random.key(1), FRAMES[[0, 1, 5]])).sum(1)
    assert counts[0] == counts[1] > 0 and counts[2] == 0


def test_one_key_gives_one_mask():
    sample = jax.jit(functools.partial(block_mask, length=30, mask_prob=0.5, mask_length=5))
    one, same, other = (sample(jax.random.key(seed), 30) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (np.asarray(one) != np.asarray(other)).any()


def test_numpy_masks_respect_lengths_and_options():
    frames = [60, 41, 17]
    options = dict(length=64, mask_prob=0.5, mask_length=5)
    same = span_masks_numpy(1, 2, range(3), frames, **options)
    assert len(set(same.sum(1))) == 1
    more = span_masks_numpy(1, 2, range(3), [60, 55, 50], add_masks=True, **options)
    assert len(set(more.sum(1))) == 1 and not more[2, 50:].any()
    free = span_masks_numpy(1, 2, range(3), frames, require_same_masks=False, **options)
    assert len(set(free.sum(1))) > 1
    holes = span_masks_numpy(1, 2, range(3), frames, mask_dropout=0.5, **options)
    assert holes.sum() < same.sum()
