"""Augmentation stays inside each row, follows its key alone, and can reach what it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models import augment as module
from c2ser_jax.models.augment import (
    SpecAugmentConfig,
    SpecSubConfig,
    apply_spec_augment,
    apply_spec_sub,
    augment,
    draw_spec_augment,
    draw_spec_sub,
    row_keys,
)

LENGTHS = np.array([37, 60, 5, 1, 0, 22], np.int32)
BINS = 13
MASKS = SpecAugmentConfig(max_time_frames=20, max_frequency_bins=4)
SUBSTITUTIONS = SpecSubConfig(max_frames=12)
run = jax.jit(lambda keys, x, n: augment(keys, x, n, spec_augment=MASKS, spec_sub=SUBSTITUTIONS))


@jax.jit
def step_by_step(keys, x, lengths):
    masks = draw_spec_augment(keys, lengths, MASKS, bins=BINS)
    subs = draw_spec_sub(keys, lengths, SUBSTITUTIONS)
    masked = apply_spec_augment(x, lengths, masks)
    return masks, subs, masked, apply_spec_sub(masked, lengths, subs)


@pytest.fixture(scope="module")
def features():
    """float32[6, 60, 13], none of them 0, NaN behind the real frames."""
    x = np.random.default_rng(0).uniform(1, 2, (6, 60, BINS)).astype(np.float32)
    x[np.arange(60) >= LENGTHS[:, None]] = np.nan
    return x


@pytest.fixture(scope="module")
def keys():
    return row_keys(jax.random.key(3), 6)


def test_a_row_alone_equals_itself_padded_in_a_batch_and_shuffled(features, keys):
    together = np.asarray(run(keys, features, LENGTHS))
    order = np.array([4, 2, 0, 5, 3, 1])
    shuffled = np.asarray(run(keys[order], features[order], LENGTHS[order]))
    wider = np.pad(features, ((0, 0), (0, 31), (0, 0)), constant_values=7.0)
    padded = np.asarray(run(keys, wider, LENGTHS))
    for row, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(shuffled[order.tolist().index(row)], together[row])
        np.testing.assert_array_equal(padded[row, :n], together[row, :n])
        assert (padded[row, 60:] == 7.0).all() and np.isnan(together[row, n:]).all()
    alone = np.asarray(run(keys[1:2], wider[1:2], LENGTHS[1:2]))
    np.testing.assert_array_equal(alone[0, :60], together[1])
    changed = [not np.array_equal(together[r, :n], features[r, :n]) for r, n in enumerate(LENGTHS)]
    assert changed[:3] == [True, True, True]


def test_the_key_decides_bit_by_bit(features, keys):
    first = np.asarray(run(keys, features, LENGTHS))
    np.testing.assert_array_equal(run(keys, features, LENGTHS), first)
    other = np.asarray(run(row_keys(jax.random.key(4), 6), features, LENGTHS))
    assert not np.array_equal(other[1], first[1])
    swapped = np.asarray(run(keys[::-1], features, LENGTHS))
    assert not np.array_equal(swapped[1], first[1])
    few = jax.random.key_data(row_keys(jax.random.key(3), 2))
    np.testing.assert_array_equal(few, jax.random.key_data(keys)[:2])


def test_draws_reach_both_ends_and_nothing_beyond():
    many = 4000

    @jax.jit
    def draw(key):
        keys, lengths = row_keys(key, many), jnp.full((many,), 9)
        masks = draw_spec_augment(keys, lengths, SpecAugmentConfig(2, 6, 3, 4), bins=5)
        return masks, draw_spec_sub(keys, lengths, SpecSubConfig(2, 3))

    masks, subs = draw(jax.random.key(0))
    assert masks.time_start.shape == (many, 2) and masks.frequency_start.shape == (many, 3)
    for drawn, low, high in (
        (masks.time_start, 0, 8),
        (masks.time_length, 1, 6),
        (masks.frequency_start, 0, 4),
        (masks.frequency_length, 1, 4),
        (subs.start, 0, 8),
        (subs.length, 1, 3),
    ):
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        assert counts.min() > 0.85 * counts.mean()  # uniform
    assert (np.asarray(subs.back) <= np.asarray(subs.start)).all()
    at_end = np.asarray(subs.back)[np.asarray(subs.start) == 8]
    assert np.unique(at_end).tolist() == list(range(9))


def test_masks_and_substitutions_written_out(features, keys):
    x, n = features, LENGTHS
    masks, subs, masked, both = jax.tree.map(np.asarray, step_by_step(keys, x, n))
    for row in range(6):
        wanted = x[row, : n[row]].copy()
        for start, length in zip(masks.time_start[row], masks.time_length[row], strict=True):
            wanted[start : start + length] = 0
        for start, length in zip(
            masks.frequency_start[row], masks.frequency_length[row], strict=True
        ):
            wanted[:, start : start + length] = 0
        np.testing.assert_array_equal(masked[row, : n[row]], wanted)
        given = wanted.copy()
        for start, length, back in zip(
            subs.start[row], subs.length[row], subs.back[row], strict=True
        ):
            end = min(int(start + length), int(n[row]))
            wanted[start:end] = given[start - back : end - back]
        np.testing.assert_array_equal(both[row, : n[row]], wanted)


def test_steps_can_be_left_out_and_are_independent(features, keys):
    nothing = augment(keys, features, LENGTHS)
    np.testing.assert_array_equal(nothing, features)

    @jax.jit
    def variants(keys, x, n):
        off = SpecAugmentConfig(time_masks=0, frequency_masks=0)
        return (
            augment(keys, x, n, spec_augment=off, spec_sub=SpecSubConfig(0)),
            augment(keys, x, n, spec_sub=SUBSTITUTIONS),
            augment(keys, x, n, spec_augment=off, spec_sub=SUBSTITUTIONS),
            augment(keys, x.astype(jnp.bfloat16), n, spec_augment=MASKS),
        )

    still, substituted, beside, half = variants(keys, features, LENGTHS)
    np.testing.assert_array_equal(still, features)
    np.testing.assert_array_equal(substituted, beside)
    assert half.dtype == jnp.bfloat16


def test_draws_that_look_at_the_padded_length_are_noticed(features, keys, monkeypatch):
    def substitute():
        step = jax.jit(lambda keys, x, n: augment(keys, x, n, spec_sub=SUBSTITUTIONS))
        return np.asarray(step(keys, features, LENGTHS))

    right, spans = substitute(), module._spans
    monkeypatch.setattr(module, "_spans", lambda key, k, room, most: spans(key, k, 60, most))
    wrong = substitute()
    np.testing.assert_array_equal(wrong[1], right[1])  # the longest row is right by chance
    assert not np.array_equal(wrong[0, :37], right[0, :37])


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        (SpecAugmentConfig, {"time_masks": -1}, "time_masks is -1"),
        (SpecAugmentConfig, {"max_time_frames": 0}, "max_time_frames is 0.*at least 1"),
        (SpecAugmentConfig, {"frequency_masks": 1.5}, "whole number"),
        (SpecSubConfig, {"substitutions": True}, "substitutions is True"),
        (SpecSubConfig, {"max_frames": -3}, "max_frames is -3"),
    ],
)
def test_impossible_counts_get_a_sentence(config, values, words):
    with pytest.raises(UserError, match=words):
        config(**values)
