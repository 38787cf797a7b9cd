"""Cross entropy over emotion classes.

Shapes: B utterances, C classes.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits, labels, *, label_smoothing: float = 0.0, class_weights=None):
    """Cross entropy of the labelled rows, as torch's with label smoothing and weights.

    Args:
      logits: float[B, C]; -inf for a class that can't be.
      labels: int32[B]; -1 = unlabelled, left out.
      label_smoothing: share of the target spread evenly over all classes.
      class_weights: float[C] or None; a row weighs as its label's class. Smoothed mass weighs as
        the class it falls on.

    Returns:
      (sum of weighted losses, sum of the rows' weights), float32 scalars.
    """
    log_shares = jax.nn.log_softmax(logits.astype(jnp.float32))
    classes = logits.shape[-1]
    weights = jnp.ones(classes) if class_weights is None else jnp.asarray(class_weights)
    weights = weights.astype(jnp.float32)
    labelled = labels >= 0
    chosen = jax.nn.one_hot(labels, classes)
    target = chosen * (1.0 - label_smoothing) + label_smoothing / classes
    # 0 * -inf is nan: classes without target mass are left out before the product.
    losses = -(jnp.where(target > 0, log_shares, 0.0) * target * weights).sum(-1)
    row_weights = jnp.where(labelled, (chosen * weights).sum(-1), 0.0)
    return jnp.where(labelled, losses, 0.0).sum(), row_weights.sum()
