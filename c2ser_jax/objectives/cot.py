"""Losses over the tokens of an answer: cross-entropy, accuracy, and the distance to a teacher.

Everything is computed in float32; tokens are picked by comparison, which a vocabulary that is split
over devices needs no exchange of logits for.

Shapes: B utterances, L answer tokens, K of its last ones, V vocabulary.
"""

import jax
import jax.numpy as jnp


def token_cross_entropy(logits, targets, mask, *, label_smoothing: float = 0.0):
    """Cross entropy of the real tokens, as torch's with label smoothing.

    Args:
      logits: float[B, L, V], each of the token at its place.
      targets: int32[B, L].
      mask: bool[B, L], True = a token of the answer, its end included.
      label_smoothing: share of the target spread evenly over the vocabulary.

    Returns:
      (sum, number of tokens), float32 scalars.
    """
    logits = logits.astype(jnp.float32)
    whole = jax.nn.logsumexp(logits, axis=-1)
    losses = whole - _picked(logits, targets)
    if label_smoothing:
        spread = whole - logits.mean(-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * spread
    return jnp.where(mask, losses, 0.0).sum(), mask.sum().astype(jnp.float32)


def token_accuracy(logits, targets, mask):
    """(number of real tokens that have the highest logit, number of real tokens), float32.

    Arguments as for `token_cross_entropy`; with equal logits every one of them is the highest.
    """
    hits = _picked(logits, targets) >= logits.max(-1)
    return (hits & mask).sum().astype(jnp.float32), mask.sum().astype(jnp.float32)


def distillation(logits, teacher_logits, mask):
    """Kullback-Leibler divergence of the student from the teacher, KL(teacher || student).

    logits and teacher_logits float[B, K, V], mask bool[B, K] -> (sum, number of tokens), float32
    scalars. The teacher gets no gradient.
    """
    student = jax.nn.log_softmax(logits.astype(jnp.float32))
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32))
    losses = (jnp.exp(teacher) * (teacher - student)).sum(-1)
    return jnp.where(mask, losses, 0.0).sum(), mask.sum().astype(jnp.float32)


def last_tokens(values, lengths, count: int):
    """The last `count` entries of each row.

    values [B, L, ...], lengths int32[B] -> [B, count, ...]; entry k of a row is that of place
    `length - count + k`, and that of place 0 before the row's beginning.
    """
    places = jnp.maximum(lengths[:, None] - count + jnp.arange(count), 0)
    return jnp.take_along_axis(values, places.reshape(*places.shape, *[1] * (values.ndim - 2)), 1)


def _picked(logits, targets):
    """float[B, L], the logits of int32[B, L] tokens."""
    chosen = jnp.arange(logits.shape[-1]) == targets[:, :, None]
    return jnp.where(chosen, logits, 0.0).sum(-1)
