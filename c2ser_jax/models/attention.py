"""Multi-head attention: one door for every model and implementation, and linear distance biases.

Shapes: B batch, S sequence, T keys, H heads, K key-value heads, C channels of one head,
D = H * C width.
"""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint

from c2ser_jax.errors import UserError
from c2ser_jax.models.layers import SUM_BLOCK, Dense, dropout, full_precision, rounded

Implementation = Literal["xla", "cudnn"]
IMPLEMENTATIONS = get_args(Implementation)


def attend(query, key, value, *, bias=None, mask=None, implementation: Implementation = "xla",
           dropout_rate: float = 0.0, dropout_key=None):  # fmt: skip
    """softmax(query @ key / sqrt(C) + bias) @ value, the softmax in float32.

    Args:
      query: float[B, S, H, C].
      key, value: float[B, T, K, C]; H is a multiple of K, and neighbouring heads share a key.
      bias: float[B | 1, H | 1, S, T] added to the scaled logits, or None.
      mask: bool[B | 1, H | 1, S | 1, T], True = may be attended to, or None. A row without any
        True gives finite numbers that mean nothing.
      implementation: "xla" or "cudnn"; nothing falls back silently.
      dropout_rate, dropout_key: dropout on the attention weights; no key means none.

    Returns:
      query's dtype[B, S, H, C].

    Raises:
      UserError: weight dropout was asked of "cudnn", which the wrapped function doesn't offer.
    """
    drops = dropout_rate > 0.0 and dropout_key is not None
    with full_precision(query.dtype):
        if implementation == "xla":
            return _attend_by_products(
                query, key, value, bias, mask, dropout_rate, dropout_key if drops else None
            )
        if drops:
            raise UserError(
                f"attention_implementation {implementation!r} has no attention dropout: "
                "set attention_dropout to 0 or attention_implementation to 'xla'"
            )
        return _attend_fused(query, key, value, bias, mask, implementation)


def _attend_fused(query, key, value, bias, mask, implementation):
    """`attend` as one fused kernel.

    It wants masks and biases of full length, and even lengths in its backward pass: both sides are
    padded, keys behind a mask.
    """
    S, T = query.shape[1], key.shape[1]
    rows, keys = S % 2, T % 2
    if keys and mask is None:
        mask = jnp.ones((1, 1, 1, T), bool)

    def whole(x):
        if x is None:
            return None
        x = jnp.broadcast_to(x, (*x.shape[:2], S, T))
        return jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, keys)))

    query = jnp.pad(query, ((0, 0), (0, rows), (0, 0), (0, 0)))
    key, value = (jnp.pad(x, ((0, 0), (0, keys), (0, 0), (0, 0))) for x in (key, value))
    y = jax.nn.dot_product_attention(
        query, key, value, whole(bias), whole(mask), implementation=implementation
    )
    return y[:, :S]


def _attend_by_products(query, key, value, bias, mask, dropout_rate, dropout_key):
    """`attend` as two batched products around an unnormalised softmax.

    The same numbers as `jax.nn.dot_product_attention(implementation="xla")` to rounding, in 0.55 of
    its time on CPU: heads are moved beside the batch once, and [B, S, H, C] is divided by the
    weights' sum and not [B, H, S, S]. Keys are padded to a multiple of SUM_BLOCK: an utterance's
    last keys are then added in the same order whatever padding follows them.
    """
    (B, S, H, C), K = query.shape, key.shape[2]
    padding = -key.shape[1] % SUM_BLOCK
    if padding:
        mask = jnp.ones((1, 1, 1, key.shape[1]), bool) if mask is None else mask
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, padding)))
        bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, padding)))
        key, value = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (key, value))
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # [B, H, S, C]
    query = query.reshape(B, K, H // K * S, C)  # the heads of one key-value head, one below another
    wide = {"preferred_element_type": jnp.float32}
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = jnp.matmul(query, jnp.swapaxes(key, -1, -2), **wide)
    logits = logits.reshape(B, H, S, -1)
    logits = logits if bias is None else logits + rounded(bias)
    logits = logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    weights = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    y = jnp.matmul(weights.reshape(B, K, H // K * S, -1), value, **wide)
    y = y.reshape(B, H, S, C) / total
    return jnp.swapaxes(y.astype(query.dtype), 1, 2)


def alibi_slopes(heads: int) -> np.ndarray:
    """Slopes float32[H] of the linear biases (Press et al. 2022, as fairseq's get_slopes).

    A power of two n gives 2^(-8 (h + 1) / n). Any other count takes the slopes of the largest
    power of two p below it, then the 1st, 3rd, 5th ... slope of 2 p.
    """

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]

    power = 2 ** (heads.bit_length() - 1)
    slopes = geometric(power) + geometric(2 * power)[::2][: heads - power]
    return np.asarray(slopes, np.float32)


def frame_distances(positions, tokens: int):
    """Distances |i - j| between frames, zero from and to the `tokens` placed before them.

    positions int[B | 1, T] -> float32[B | 1, tokens + T, tokens + T].
    """
    frames = jnp.pad(jnp.ones(positions.shape, jnp.float32), ((0, 0), (tokens, 0)))
    indices = jnp.pad(positions.astype(jnp.float32), ((0, 0), (tokens, 0)))
    distances = jnp.abs(indices[:, :, None] - indices[:, None, :])
    return distances * frames[:, :, None] * frames[:, None, :]


class Attention(nn.Module):
    """Self-attention with one `qkv` product, output ordered (q, k, v) x head x channel."""

    heads: int
    dtype: Any = jnp.float32
    implementation: Implementation = "xla"
    dropout: float = 0.0
    weight_dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, distances=None, slopes=None, mask=None, train: bool = False):
        """Maps float[B, S, D] to the same shape.

        distances float32[B | 1, S, S] times slopes float32[H] is subtracted from the logits (or
        both None); mask bool[B, S], True = real.
        """
        B, S, D = x.shape
        qkv = Dense(3 * D, ("width", "qkv"), self.dtype, name="qkv")(x)
        qkv = qkv.reshape(B, S, 3, self.heads, D // self.heads)
        query, key, value = (
            with_logical_constraint(qkv[:, :, i], ("batch", "time", "heads", "head_dim"))
            for i in range(3)
        )
        bias = None
        if distances is not None and slopes is not None:
            bias = -distances[:, None] * slopes[:, None, None]  # [B | 1, H, S, S]
        drops = train and self.weight_dropout > 0.0
        y = attend(
            query, key, value, bias=bias,
            mask=None if mask is None else mask[:, None, None, :],
            implementation=self.implementation,
            dropout_rate=self.weight_dropout,
            dropout_key=self.make_rng("dropout") if drops else None,
        )  # fmt: skip
        y = Dense(D, ("embed_in", "width"), self.dtype, name="proj")(y.reshape(B, S, D))
        return dropout(
            y, self.dropout, self.make_rng("dropout") if train and self.dropout > 0 else None
        )
