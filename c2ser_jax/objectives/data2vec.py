"""data2vec 2.0 losses: masked frames, utterance tokens, and the sums fairseq publishes.

Shapes: R rows, T frames, D width. Everything is computed in float32; sums and counts are scalars.
"""

import jax.numpy as jnp


def frame_regression(predictions, targets, masked):
    """Squared error summed over channels / sqrt(D), added up over masked frames.

    predictions and targets float[R, T, D], masked bool[R, T] -> (sum, number of masked frames).
    The mean is METHOD's L_frame; the sum is fairseq's `loss_regression` (`data2vec2.py`, mse).
    """
    errors = _squared_error(predictions, targets)
    return jnp.where(masked, errors, 0.0).sum(), masked.sum().astype(jnp.float32)


def utterance_regression(predictions, targets, present):
    """Squared error summed over channels / sqrt(D), added up over rows that are present.

    predictions and targets float[R, D], present bool[R] (False: a padding row) -> (sum, rows).
    """
    errors = _squared_error(predictions, targets)
    return jnp.where(present, errors, 0.0).sum(), present.sum().astype(jnp.float32)


def published_sums(frame_term, utterance_term, *, cls_weight: float = 1.0):
    """The three sums of fairseq's criterion, which divides their total by the count.

    Public API for comparisons with the published trainer's logs; training takes the pairs above.

    frame_term and utterance_term are the (sum, count) pairs above. The utterance sum is multiplied
    by the number of masked frames (`sample_size`), so that the division leaves a sum over rows.

    Returns:
      (regression sum, utterance sum, number of masked frames).
    """
    regression, sample_size = frame_term
    return regression, utterance_term[0] * cls_weight * sample_size, sample_size


def masked_deviation(x, masked):
    """How far from collapse x is: mean over channels of the deviation over masked frames.

    float[R, T, D], bool[R, T] -> float32 scalar, mean of sqrt(unbiased variance + 1e-6): fairseq's
    `pred_var` and `target_var`. Its 0.01 and 0.1 are the values below which fairseq stops.
    """
    x = x.astype(jnp.float32)
    mask = masked[:, :, None]
    count = masked.sum()
    mean = jnp.where(mask, x, 0.0).sum((0, 1)) / jnp.maximum(count, 1)
    squares = jnp.square(jnp.where(mask, x - mean, 0.0)).sum((0, 1))
    return jnp.sqrt(squares / jnp.maximum(count - 1, 1) + 1e-6).mean()


def _squared_error(predictions, targets):
    difference = predictions.astype(jnp.float32) - targets.astype(jnp.float32)
    return jnp.square(difference).sum(-1) * difference.shape[-1] ** -0.5
