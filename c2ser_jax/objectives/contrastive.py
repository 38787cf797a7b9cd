"""Category-level contrastive loss: utterances of one emotion attract, of others repel.

Shapes: B utterances, D width.
"""

import jax
import jax.numpy as jnp
from jax import lax


def supervised_contrastive(embeddings, labels, *, temperature: float):
    """The L_out form of Khosla et al. 2020 (equation 2) over the labelled rows of a batch.

    For an anchor i with partners P(i) among the other labelled rows A(i), cosine similarities s:

        - mean over p in P(i) of log( exp(s_ip / t) / sum over a in A(i) of exp(s_ia / t) )

    Args:
      embeddings: float[B, D]; a zero row is allowed and similar to nothing.
      labels: int32[B]; -1 = unlabelled, which is neither anchor, partner nor negative.
      temperature: t > 0.

    Returns:
      (sum over anchors that have a partner, number of such anchors), float32 scalars.
    """
    x = embeddings.astype(jnp.float32)
    x = x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
    logits = jnp.matmul(x, x.T, precision="highest") / temperature
    labelled = labels >= 0
    others = labelled[:, None] & labelled[None, :] & ~jnp.eye(len(labels), dtype=bool)
    partners = others & (labels[:, None] == labels[None, :])
    counts = partners.sum(1)
    anchors = counts > 0
    # A row without others would give log(0); it is no anchor, so any finite stand-in serves.
    shown = jnp.where(others | ~anchors[:, None], logits, -jnp.inf)
    log_shares = logits - jax.nn.logsumexp(shown, axis=1, keepdims=True)
    losses = -jnp.where(partners, log_shares, 0.0).sum(1) / jnp.maximum(counts, 1)
    return jnp.where(anchors, losses, 0.0).sum(), anchors.sum().astype(jnp.float32)
