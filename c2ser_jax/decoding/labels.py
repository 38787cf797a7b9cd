"""Scores every label of a task with the language model: probabilities, always inside the set.

Prompt and speech run once. All labels then run together in one row behind the prompt's cache, each
seeing the prompt and itself alone. With two labels of two tokens, `visible` is

    a1 a2 b1 b2
    1  0  0  0   a1
    1  1  0  0   a2
    0  0  1  0   b1
    0  0  1  1   b2

Shapes: B prompts, S positions, D width, J labels, T tokens of the longest one, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.decoding.cache import start
from c2ser_jax.errors import UserError
from c2ser_jax.models.qwen2 import Qwen2


class LabelScores(flax.struct.PyTreeNode):
    """probabilities float32[B, J], rows sum to 1; scores float32[B, J], logarithms."""

    probabilities: jax.Array
    scores: jax.Array


def pack_labels(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32[J, T], mask bool[J, T]) of the labels' token sequences, padded behind.

    Raises:
      UserError: no label, or one without tokens.
    """
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise UserError("label scoring needs at least one label, none of them without tokens")
    longest = max(map(len, sequences))
    tokens = np.zeros((len(sequences), longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], mask[row, : len(sequence)] = sequence, True
    return tokens, mask


def pack_rivals(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """bool[J, J, T]: whether token t of label k rivals that of label j, behind the same tokens.

    labels, mask: as `pack_labels` makes them, the ending token included. Of labels that have the
    same token there, the first stands for all.

    Raises:
      UserError: two labels have the same tokens.
    """
    J, T = labels.shape
    rivals = np.zeros((J, J, T), bool)
    for j, t in zip(*np.nonzero(mask), strict=True):
        seen = set()
        for k in range(J):
            alike = mask[k, t] and (labels[k, :t] == labels[j, :t]).all()
            if alike and labels[k, t] not in seen:
                seen.add(labels[k, t])
                rivals[j, k, t] = True
    where = np.where(mask, labels, -1)
    if len(np.unique(where, axis=0)) < J:
        raise UserError("two labels have the same tokens: give each its own answer")
    return rivals


@functools.partial(jax.jit, static_argnames=("model",))
def score_labels(
    model: Qwen2, params: Any, embeddings, mask, labels, label_mask, *, counted=None, rivals=None,
    prior=None, temperature=1.0,
) -> LabelScores:  # fmt: skip
    """Probability of each label as the answer to each prompt.

    Args:
      model, params: the language model; its parameters alone.
      embeddings: float[B, S, D], padded; mask: bool[B, S], True = real.
      labels, label_mask: int32[J, T] and bool[J, T] as `pack_labels` makes them: the texts in the
        answer's template, with the ending token where it shall count.
      counted: bool[J, T], the tokens whose log-probabilities are averaged; None: `label_mask`.
      rivals: bool[J, J, T] of `pack_rivals`: a label's score is then its log-probability among the
        labels, which only tokens that decide between labels change, however long each is.
      prior: float[J], scores that the labels have without any speech, subtracted; or None.
      temperature: divides the scores; it changes no order.

    Returns:
      LabelScores; its scores are before prior and temperature.
    """
    J, T = labels.shape
    logits, cache = start(model, params, embeddings, mask, J * (T - 1))
    found = jax.nn.log_softmax(logits)[:, labels[:, 0]][:, :, None]  # [B, J, 1]
    if T > 1:
        later = _later(model, params, labels, label_mask, cache)
        found = jnp.concatenate([found, later], 2)
    if rivals is None:
        counted = label_mask if counted is None else counted
        scores = jnp.where(counted, found, 0.0).sum(2) / jnp.maximum(counted.sum(1), 1)
    else:
        choices = jnp.where(rivals, found[:, None], -jnp.inf)  # [B, J, J, T]
        decided = found - jax.nn.logsumexp(choices, 2)
        scores = jnp.where(label_mask, decided, 0.0).sum(2)
    corrected = scores if prior is None else scores - prior
    return LabelScores(jax.nn.softmax(corrected / temperature, 1), scores)


def _later(model, params, labels, label_mask, cache):
    """Log-probabilities float32[B, J, T - 1] of all tokens of each label but its first."""
    B, (J, T) = cache.mask.shape[0], labels.shape
    size = J * (T - 1)
    place = jnp.arange(size)
    same_label = place[:, None] // (T - 1) == place[None, :] // (T - 1)
    visible = same_label & (place[:, None] >= place[None, :])
    row = lambda x: jnp.broadcast_to(x.reshape(1, size), (B, size))  # noqa: E731
    output = model.apply(
        {"params": params},
        row(labels[:, :-1]),
        mask=row(label_mask[:, :-1]),
        positions=cache.position[:, None] + (place % (T - 1))[None],
        cache=cache,
        visible=visible[None],
    )
    chosen = jnp.take_along_axis(output.logits, row(labels[:, 1:])[:, :, None], 2)[:, :, 0]
    found = chosen - jax.nn.logsumexp(output.logits, -1)
    return found.reshape(B, J, T - 1)
