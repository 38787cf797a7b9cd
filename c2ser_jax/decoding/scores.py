"""What is done to next-token scores before a token is chosen; shapes are [..., V]."""

import jax.numpy as jnp

from c2ser_jax.decoding.options import DecodingConfig


def penalise(scores, seen, penalty: float):
    """Makes tokens that came before less likely (Keskar et al. 2019).

    scores float32[..., V], seen bool[..., V]: positive scores are divided by the penalty, negative
    ones multiplied with it.
    """
    if penalty == 1.0:
        return scores
    return jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)


def forbid_early_end(scores, step, cfg: DecodingConfig):
    """Makes ending impossible while fewer than `min_new_tokens` tokens (int32[] step) stand."""
    if not cfg.min_new_tokens:
        return scores
    ends = jnp.zeros(scores.shape[-1], bool).at[jnp.asarray(cfg.eos)].set(True)
    return jnp.where(ends & (step < cfg.min_new_tokens), -jnp.inf, scores)


def is_end(token, eos: tuple[int, ...]):
    """bool[...], whether token int32[...] ends an answer."""
    return (token[..., None] == jnp.asarray(eos)).any(-1)


def mark(seen, token):
    """seen bool[..., V] with token int32[...] set."""
    flat = seen.reshape(-1, seen.shape[-1])
    flat = flat.at[jnp.arange(flat.shape[0]), token.reshape(-1)].set(True)
    return flat.reshape(seen.shape)
