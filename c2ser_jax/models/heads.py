"""Classifies an utterance from its frozen frame features: the SUPERB / EmoBox downstream head.

Shapes: B utterances, T frames (padded), P packed frames (utterances laid end to end), F feature
width, H hidden units, C classes. Masks: True = real frame.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn


def length_mask(lengths, frames: int):
    """Tells real frames from padding: lengths int[B] -> bool[B, T] with T = `frames`."""
    return jnp.arange(frames)[None, :] < jnp.asarray(lengths)[:, None]


def nonzero_sum_mask(features):
    """Upstream's mask, float[B, T, F] -> bool[B, T]: a frame counts if its features don't sum to 0.

    It loses a real frame that happens to sum to 0 and every frame of an all-zero utterance, so it
    serves comparisons with published code only (emo-box/EmoBox, examples/sb/train.py).
    """
    return jnp.sum(features, axis=-1) != 0


def masked_mean(values, mask):
    """Averages the real frames: float[B, T, H], bool[B, T] -> float[B, H]; 0 where none is real."""
    weights = mask.astype(values.dtype)
    total = jnp.einsum("bth,bt->bh", values, weights)
    return total / jnp.maximum(weights.sum(axis=1), 1)[:, None]


def packed_mean(values, rows, count: int):
    """Averages each utterance of a packed batch: float[P, H], int[P] -> float[B, H], B = `count`.

    `rows` names the utterance of every frame; a value of B or more marks padding. An utterance
    without frames gives 0.
    """
    weights = jax.nn.one_hot(rows, count, axis=0, dtype=values.dtype)  # [B, P], padding all 0
    return (weights @ values) / jnp.maximum(weights.sum(axis=1), 1)[:, None]


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
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(init, axes[1:]),
    )


class DownstreamHead(nn.Module):
    """Linear, ReLU, mean over real frames, Linear (emo-box/EmoBox, examples/sb/classifier_head.py).

    The emotion2vec IEMOCAP probe (ddlBoJack/emotion2vec, iemocap_downstream/model.py) has the same
    structure. Parameters: `pre_net/{kernel [F, H], bias}`, `post_net/{kernel [H, C], bias}`.
    """

    hidden: int
    classes: int

    @nn.compact
    def __call__(self, features, mask=None, *, rows=None, count: int = 0, units=None):
        """Returns logits float32[B, C].

        Padded form: features float[B, T, F] with mask bool[B, T]. Packed form: features float[P, F]
        with rows int[P] (see `packed_mean`) and count = B. `units` float[H] multiplies the hidden
        units: zeros switch units off, which makes a wide head compute exactly a narrower one.
        """
        x = _linear("pre_net", features.shape[-1], self.hidden, ("embed_in", "mlp"))(features)
        x = nn.relu(x)
        if rows is None:
            x = masked_mean(nn.with_logical_constraint(x, ("batch", "time", "mlp")), mask)
        else:
            x = packed_mean(x, rows, count)
        if units is not None:
            x = x * units
        return _linear("post_net", self.hidden, self.classes, ("mlp", "classes"))(x)
