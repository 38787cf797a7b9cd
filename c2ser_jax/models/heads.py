"""Classifies an utterance from its frozen frame features: the SUPERB / EmoBox downstream head.

Shapes: B utterances, T frames (padded), P packed frames (utterances laid end to end), F feature
width, H hidden units, C classes. Masks: True = real frame.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint, with_logical_partitioning


def length_mask(lengths, frames: int):
    """Tells real frames from padding: lengths int[B] -> bool[B, T] with T = `frames`.

    Public API for who feeds the heads features of their own; tasks make their masks on the host.
    """
    return jnp.arange(frames)[None, :] < jnp.asarray(lengths)[:, None]


def nonzero_sum_mask(features):
    """Upstream's mask, float[B, T, F] -> bool[B, T]: a frame counts if its features don't sum to 0.

    It loses a real frame that happens to sum to 0 and every frame of an all-zero utterance, so it
    is public API for comparisons with published code only (emo-box/EmoBox, examples/sb/train.py).
    """
    return jnp.sum(features, axis=-1) != 0


def masked_mean(values, mask):
    """Averages the real frames: float[B, T, H], bool[B, T] -> float[B, H]; 0 where none is real."""
    weights = mask.astype(values.dtype)
    total = jnp.einsum("bth,bt->bh", values, weights)
    return total / jnp.maximum(weights.sum(axis=1), 1)[:, None]


def packed_logits(params, frames, rows, count: int, *, units=None, chunk: int = 256):
    """Applies a `DownstreamHead` to utterances laid end to end instead of padded.

    `params` of the head; frames float32[P, F]; rows int[P] names the utterance of every frame, and
    `count` (= B) or more marks a frame to leave out; an utterance without frames pools to 0.
    `units` float32[H] multiplies the hidden units: zeros switch units off, which makes a wide head
    compute exactly a narrower one. Returns float32[B, C].

    Frames are processed `chunk` at a time, so that hidden values [chunk, H] stay in a CPU's cache
    (several times faster there; an accelerator is better served by one large chunk), and chunks
    without a frame to count are skipped.
    """
    kernel, bias = params["pre_net"]["kernel"], params["pre_net"]["bias"]
    chunk = min(chunk, frames.shape[0])
    spare = -frames.shape[0] % chunk
    frames = jnp.pad(frames, ((0, spare), (0, 0))).reshape(-1, chunk, frames.shape[1])
    rows = jnp.pad(rows, (0, spare), constant_values=count).reshape(-1, chunk)

    def pool(x, owner):
        weights = jax.nn.one_hot(owner, count, axis=0, dtype=x.dtype)  # [B, chunk]
        return weights @ nn.relu(x @ kernel + bias)

    def add(total, part):
        if len(rows) == 1:
            return total + pool(*part), None
        nothing = jnp.zeros_like(total)
        used = jnp.any(part[1] < count)
        return total + jax.lax.cond(used, pool, lambda *_: nothing, *part), None

    total, _ = jax.lax.scan(add, jnp.zeros((count, bias.shape[0]), frames.dtype), (frames, rows))
    lengths = jnp.bincount(rows.reshape(-1), length=count + 1)[:count]
    pooled = total / jnp.maximum(lengths, 1)[:, None]
    if units is not None:
        pooled = pooled * units
    return pooled @ params["post_net"]["kernel"] + params["post_net"]["bias"]


def _uniform_fan_in(fan_in: int):
    """torch.nn.Linear's start for weights and biases alike: uniform in +-1/sqrt(fan_in)."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def _linear(name: str, fan_in: int, width: int, axes: tuple[str, str]) -> nn.Dense:
    init = _uniform_fan_in(fan_in)
    return nn.Dense(
        width,
        name=name,
        kernel_init=with_logical_partitioning(init, axes),
        bias_init=with_logical_partitioning(init, axes[1:]),
    )


class DownstreamHead(nn.Module):
    """Linear, ReLU, mean over real frames, Linear (emo-box/EmoBox, examples/sb/classifier_head.py).

    The emotion2vec IEMOCAP probe (ddlBoJack/emotion2vec, iemocap_downstream/model.py) has the same
    structure. Parameters: `pre_net/{kernel [F, H], bias}`, `post_net/{kernel [H, C], bias}`.
    """

    hidden: int
    classes: int

    @nn.compact
    def __call__(self, features, mask):
        """Returns logits float32[B, C] of features float[B, T, F] with mask bool[B, T]."""
        x = _linear("pre_net", features.shape[-1], self.hidden, ("embed_in", "mlp"))(features)
        x = with_logical_constraint(nn.relu(x), ("batch", "time", "mlp"))
        x = masked_mean(x, mask)
        return _linear("post_net", self.hidden, self.classes, ("mlp", "classes"))(x)
