"""Key-value caches of fixed capacity: filled by a prompt, continued token by token, reordered.

A cache is `models.qwen2.KeyValues`. Its shapes, and so the compiled programs, depend on the padded
prompt length and the room behind it alone: callers pad prompts to a few bucket lengths (with
masks, on whichever side) and keep `max_new_tokens` fixed, and nothing is compiled anew.

Shapes: B rows, S prompt positions, T slots, V vocabulary, D width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from c2ser_jax.models.layers import SUM_BLOCK
from c2ser_jax.models.qwen2 import KeyValues, Qwen2


def start(model: Qwen2, params, embeddings, mask, room: int):
    """Runs prompts once.

    embeddings float[B, S, D]; mask bool[B, S], True = real, holes anywhere -> (float32[B, V],
    the logits behind each row's last real position; `KeyValues` with `room` free slots).
    """
    output: Any = model.apply(
        {"params": params}, embeddings=embeddings, mask=mask, logits="last", return_cache=True
    )
    return output.logits, extend(output.cache, room)


def advance(model: Qwen2, params, tokens, cache: KeyValues):
    """Appends tokens int32[B] to every row -> (logits float32[B, V], cache with one more slot)."""
    output: Any = model.apply({"params": params}, tokens[:, None], cache=cache, logits="last")
    return output.logits, output.cache


def extend(cache: KeyValues, room: int) -> KeyValues:
    """Adds `room` free slots, rounded up so that attention pads nothing."""
    slots = cache.mask.shape[1]
    more = room + -(slots + room) % SUM_BLOCK

    def pad(x, axis):
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    keys, values = _each(cache, lambda x, row_axis: pad(x, row_axis + 1))
    return cache.replace(keys=keys, values=values, mask=pad(cache.mask, 1))


def tile(cache: KeyValues, times: int) -> KeyValues:
    """Repeats every row: row b becomes rows b * times ... b * times + times - 1."""
    keys, values = _each(cache, lambda x, row_axis: jnp.repeat(x, times, row_axis))
    return cache.replace(
        keys=keys,
        values=values,
        mask=jnp.repeat(cache.mask, times, 0),
        position=jnp.repeat(cache.position, times, 0),
    )


def take(cache: KeyValues, rows) -> KeyValues:
    """The cache whose row i is row `rows[i]` of this one; rows int32[B]."""
    keys, values = _each(cache, lambda x, row_axis: jnp.take(x, rows, row_axis))
    return cache.replace(
        keys=keys, values=values, mask=cache.mask[rows], position=cache.position[rows]
    )


def _each(cache: KeyValues, change):
    """Applies change(array, axis of the rows) to keys and values, stacked over layers or not."""
    row_axis = 0 if isinstance(cache.keys, tuple) else 1
    return jax.tree.map(lambda x: change(x, row_axis), (cache.keys, cache.values))
