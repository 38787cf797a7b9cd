"""Span masks over the frames of real speech, drawn on the device with static shapes.

Two samplers, with fairseq's names for what they follow (`fairseq/data/data_utils.py`):
`block_mask` is `compute_block_mask_1d` (an exact number of masked frames, what data2vec 2.0
pretrains with) and `span_masks` is `compute_mask_indices`. Padding is never masked nor counted.
`span_masks_numpy` repeats the second bit for bit from the same seeds.

Shapes: R rows, T frames. A mask is True where a frame is hidden from the student:

    frames = 6, T = 8, two spans of 2:   0 1 1 0 1 1 . .      (. = padding, always False)
"""

import jax
import jax.numpy as jnp
import numpy as np


def kept_frames(frames: int, probability: float) -> int:
    """How many of `frames` a `block_mask` of that probability leaves; it never falls with frames.

    So `kept_frames(T)` rows of space are enough for every row of a batch of T frames.
    """
    return frames - int(frames * probability)


def block_mask(
    key, frames, *, length: int, mask_prob: float, mask_length: int, mask_prob_adjust: float = 0.0,
    mask_dropout: float = 0.0, inverse: bool = False, expand_adjacent: bool = False,
    non_overlapping: bool = False,
):  # fmt: skip
    """One row's mask of exactly int(frames * mask_prob) frames, in spans where they fit.

    Args:
      key: jax.random key of this row.
      frames: int32[], real frames of the row, at most `length`.
      length: T, static.
      mask_prob: share of the real frames to mask.
      mask_length: frames of a span; spans are centred on their draw and cut at the ends.
      mask_prob_adjust: draws more spans, as overlapping ones cover less than they promise.
      mask_dropout: draws more spans still; what is too much is unmasked frame by frame.
      inverse: draws what is kept in spans instead.
      expand_adjacent: fills up beside masked frames instead of anywhere.
      non_overlapping: spans start at multiples of mask_length.

    Returns:
      bool[T].
    """
    probability = 1.0 - mask_prob if inverse else mask_prob
    counts = np.arange(length + 1)  # tables in float64: upstream's int() of the same products
    if non_overlapping:
        share = np.ceil(counts / mask_length) * (probability + mask_prob_adjust)
    else:
        share = counts * ((probability + mask_prob_adjust) / mask_length)
    spans = (share * (1 + mask_dropout)).astype(int)
    masked = (counts * probability).astype(int)
    span_count, target = jnp.asarray(spans)[frames], jnp.asarray(masked)[frames]
    draw, fill, trim = jax.random.split(key, 3)
    time = jnp.arange(length)
    real = time < frames
    if non_overlapping:
        cell = jnp.arange(-(-length // mask_length))
        chosen = _choose(draw, cell * mask_length < frames, span_count)
        mask = jnp.repeat(chosen, mask_length)[:length] & real
    else:
        most = max(int(spans.max()), 1)
        centres = jnp.floor(jax.random.uniform(draw, (most,)) * frames).astype(jnp.int32)
        centres = jnp.minimum(centres, frames - 1)[:, None]
        hits = jnp.clip(centres + np.arange(mask_length) - mask_length // 2, 0, frames - 1)
        hits = jnp.where(jnp.arange(most)[:, None] < span_count, hits, length)  # length: nowhere
        mask = jnp.zeros(length, bool).at[hits.reshape(-1)].set(True, mode="drop")
        mask = mask & real
    if expand_adjacent:
        wider = jnp.asarray((masked * (1 + mask_dropout)).astype(int))[frames]
        mask = _expand(fill, mask, real, wider)
    mask = mask | _choose(fill, real & ~mask, target - mask.sum())
    mask = mask & ~_choose(trim, mask, mask.sum() - target)
    return real & ~mask if inverse else mask


def span_masks(
    key, frames, *, length: int, mask_prob: float, mask_length: int, min_masks: int = 1,
    require_same_masks: bool = True, add_masks: bool = False, mask_dropout: float = 0.0,
):  # fmt: skip
    """Masks of a batch in spans that may overlap, so their number of frames is random.

    Args:
      key: jax.random key.
      frames: int32[R], real frames of each row; rows of zero frames get an empty mask and have no
        say in the others' number.
      length: T, static.
      mask_prob: span frames drawn, as a share of the real frames, overlaps counted twice.
      mask_length: frames of a span; no span starts in the last mask_length frames.
      min_masks: spans drawn at least.
      require_same_masks: unmasks single frames until all rows have the smallest row's number.
      add_masks: with the former, masks single frames up to the largest row's number instead.
      mask_dropout: share of the masked frames unmasked at the end.

    Returns:
      bool[R, T].
    """
    count_key, *keys = jax.random.split(key, 5)
    keys = [jax.random.split(key, len(frames)) for key in keys]
    choose = jax.vmap(_choose)
    time = jnp.arange(length)
    real = time < frames[:, None]
    expected = mask_prob * frames / mask_length
    spans = jnp.floor(expected + jax.random.uniform(count_key, expected.shape)).astype(jnp.int32)
    spans = jnp.maximum(spans, min_masks)
    last = jnp.where(frames - mask_length <= spans, spans + 1, frames - mask_length)
    starts = choose(keys[0], (time < last[:, None]) & real, spans)
    mask = starts
    for offset in range(1, mask_length):
        mask = mask | jnp.pad(starts, ((0, 0), (offset, 0)))[:, :length]
    mask = mask & (time < frames[:, None] - 1)  # a short row keeps something to see, too
    if require_same_masks:
        counts = mask.sum(1)
        if add_masks:
            target = counts.max()
        else:
            target = jnp.where(frames > 0, counts, length).min()
        mask = mask | choose(keys[1], real & ~mask, target - counts)
        mask = mask & ~choose(keys[2], mask, mask.sum(1) - target)
    if mask_dropout > 0.0:
        holes = jnp.round(mask.sum(1) * mask_dropout).astype(jnp.int32)
        mask = mask & ~choose(keys[3], mask, holes)
    return mask


def span_masks_numpy(
    seed: int, epoch: int, indices, frames, *, length: int, mask_prob: float, mask_length: int,
    min_masks: int = 1, require_same_masks: bool = True, add_masks: bool = False,
    mask_dropout: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """The masks fairseq's `compute_mask_indices` draws for (seed, epoch, index of each row).

    Arguments as `span_masks`, frames a sequence of ints. Each row draws its spans from its own
    generator; trimming, filling and dropout of all rows use the last row's.

    Returns:
      bool[R, T].
    """
    rows, generator = [], np.random.default_rng(0)
    for index, valid in zip(indices, frames, strict=True):
        generator = np.random.default_rng(int(hash((seed, epoch, int(index))) % 1e6))
        spans = max(min_masks, int(mask_prob * valid / float(mask_length) + generator.random()))
        shortest = valid - spans - 1 if valid - mask_length <= spans else mask_length
        starts = generator.choice(valid - shortest, spans, replace=False)
        hit = (starts[:, None] + np.arange(mask_length)).reshape(-1)
        rows.append(np.unique(hit[hit < valid]))
    counts = [len(row) for row in rows]
    target = max(counts) if add_masks else min(counts)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        if require_same_masks and len(row) > target:
            row = generator.choice(row, target, replace=False)
        mask[i, row] = True
        if require_same_masks and len(row) < target:
            free = np.flatnonzero(~mask[i, : frames[i]])
            mask[i, generator.choice(free, target - len(row), replace=False)] = True
        if mask_dropout > 0:
            masked = np.flatnonzero(mask[i])
            holes = int(np.rint(len(masked) * mask_dropout))
            mask[i, generator.choice(masked, holes, replace=False)] = False
    return mask


def _choose(key, candidates, count):
    """`count` of the True entries of candidates bool[T], at random; all of them when too few."""
    T = len(candidates)
    low = T.bit_length()
    # The index in the lowest bits makes all numbers different, so that the count is exact.
    lots = jax.random.bits(key, (T,), jnp.uint32) >> low << low | jnp.arange(T, dtype=jnp.uint32)
    lots = jnp.where(candidates, lots, jnp.uint32(0xFFFFFFFF))
    highest = jnp.sort(lots)[jnp.clip(count - 1, 0, T - 1)]
    return candidates & (lots <= highest) & (count > 0)


def _expand(key, mask, real, target):
    """Masks neighbours of masked frames, round by round, until `target` are masked."""

    def beside(mask):
        padded = jnp.pad(mask, 1)
        return real & ~mask & (padded[:-2] | padded[2:])

    def more(state):
        mask, _ = state
        return (mask.sum() < target) & beside(mask).any()

    def grow(state):
        mask, key = state
        key, now = jax.random.split(key)
        return mask | _choose(now, beside(mask), target - mask.sum()), key

    return jax.lax.while_loop(more, grow, (mask, key))[0]
