"""Beam search as transformers 4.44 does it, and the narrower search of the released C2SER.

Shapes: B prompts, n beams, R = B * n rows, V vocabulary, N = max_new_tokens, c candidates.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from c2ser_jax.decoding.cache import advance, start, take, tile
from c2ser_jax.decoding.options import DecodingConfig, Generated
from c2ser_jax.decoding.scores import forbid_early_end, is_end, mark, penalise
from c2ser_jax.decoding.trie import Trie
from c2ser_jax.models.qwen2 import KeyValues, Qwen2


class _Beams(flax.struct.PyTreeNode):
    """step int32[]: tokens chosen so far. Open beams go on; finished ones are sorted, best first.

    A beam whose sum or score is -inf doesn't exist: a search starts with one.
    """

    step: jax.Array
    tokens: jax.Array  # int32[B, n, N]
    sums: jax.Array  # float32[B, n], of log-probabilities
    seen: jax.Array  # bool[B, n, V]
    node: jax.Array  # int32[B, n]
    done: jax.Array  # bool[B]
    finished_tokens: jax.Array  # int32[B, n, N]
    finished_lengths: jax.Array  # int32[B, n]
    finished_scores: jax.Array  # float32[B, n]
    cache: KeyValues


def beam_search(
    model: Qwen2, params: Any, embeddings, mask, cfg: DecodingConfig, trie: Trie | None = None
) -> Generated:
    """Searches with `cfg.beams` beams; arguments as `generate` takes them.

    Prompts run once; their cache is then repeated for the beams.
    """
    B, n, N, V = embeddings.shape[0], cfg.beams, cfg.max_new_tokens, model.cfg.vocabulary

    def body(beams: _Beams) -> _Beams:
        last = lax.dynamic_index_in_dim(beams.tokens, beams.step - 1, 2, keepdims=False)
        logits, cache = advance(model, params, last.reshape(-1), beams.cache)
        return _choose(beams.replace(cache=cache), logits.reshape(B, n, V), cfg, trie)

    logits, cache = start(model, params, embeddings, mask, N - 1)
    blank = jnp.full((B, n, N), cfg.pad, jnp.int32)
    none, nothing = jnp.zeros((B, n), jnp.int32), jnp.full((B, n), -jnp.inf)
    beams = _Beams(
        jnp.int32(0), blank, nothing.at[:, 0].set(0.0), jnp.zeros((B, n, V), bool), none,
        jnp.zeros(B, bool), blank, none, nothing, tile(cache, n),
    )  # fmt: skip
    beams = _choose(beams, jnp.broadcast_to(logits[:, None], (B, n, V)), cfg, trie)
    beams = lax.while_loop(lambda b: (b.step < N) & ~b.done.all(), body, beams)
    open_scores = jnp.where(beams.done[:, None], -jnp.inf, _score(beams.sums, beams.step, cfg))
    lengths = jnp.full((B, n), beams.step)
    beams = _finish(beams, beams.tokens, lengths, open_scores)
    return Generated(
        beams.finished_tokens[:, 0], beams.finished_lengths[:, 0], beams.finished_scores[:, 0],
        beams.finished_tokens, beams.finished_lengths, beams.finished_scores,
    )  # fmt: skip


def _choose(beams: _Beams, logits, cfg: DecodingConfig, trie: Trie | None) -> _Beams:
    """Extends every open beam by one token; logits float32[B, n, V]."""
    B, n, V = logits.shape
    tokens, sums, source = _candidates(beams, logits, cfg, trie)
    length, ends = beams.step + 1, is_end(tokens, cfg.eos)
    extended = _rows(beams.tokens, source).at[:, :, beams.step].set(tokens)

    # An ending counts only among the n best candidates.
    scores = jnp.where(ends & ~beams.done[:, None], _score(sums, length, cfg), -jnp.inf)
    lengths = jnp.full((B, n), length)
    beams = _finish(beams, extended[:, :n], lengths, scores[:, :n])
    full = beams.finished_scores[:, -1]
    done = (full > -jnp.inf) & (full >= _score(sums[:, 0], length, cfg))

    going = jnp.argsort(ends, axis=1, stable=True)[:, :n]  # the n best that don't end
    tokens, sums, source = (
        jnp.take_along_axis(x, going, 1) for x in (tokens, jnp.where(ends, -jnp.inf, sums), source)
    )
    node = jnp.take_along_axis(beams.node, source, 1)
    rows = (jnp.arange(B)[:, None] * n + source).reshape(-1)
    return beams.replace(
        step=length,
        tokens=_rows(extended, going),
        sums=sums,
        seen=mark(_rows(beams.seen, source), tokens),
        node=node if trie is None else trie.follow(node, tokens),
        done=beams.done | done | (sums.max(1) == -jnp.inf),
        cache=take(beams.cache, rows),
    )


def _candidates(beams: _Beams, logits, cfg: DecodingConfig, trie: Trie | None):
    """(token, sum, beam it extends), each [B, c], best first."""
    B, n, V = logits.shape
    scores = penalise(jax.nn.log_softmax(logits), beams.seen, cfg.repetition_penalty)
    scores = forbid_early_end(scores, beams.step, cfg)
    if trie is not None:
        scores = jnp.where(trie.permitted(beams.node, V), scores, -jnp.inf)
    wanted = max(2, 1 + len(cfg.eos))
    each = min(V, wanted if cfg.mode == "published" else wanted * n)
    best, tokens = lax.top_k(scores, each)  # [B, n, each]: the c best of all lie among them
    sums = (beams.sums[:, :, None] + best).reshape(B, -1)
    sums, index = lax.top_k(sums, min(wanted * n, n * each))
    return jnp.take_along_axis(tokens.reshape(B, -1), index, 1), sums, index // each


def _finish(beams: _Beams, tokens, lengths, scores) -> _Beams:
    """Puts beams [B, n, N], [B, n], [B, n] among the finished ones and keeps the n best.

    Of equal scores the one that was there first stays.
    """
    n = beams.sums.shape[1]
    scores = jnp.concatenate([beams.finished_scores, scores], 1)
    tokens = jnp.concatenate([beams.finished_tokens, tokens], 1)
    lengths = jnp.concatenate([beams.finished_lengths, lengths], 1)
    scores, index = lax.top_k(scores, n)
    return beams.replace(
        finished_tokens=_rows(tokens, index),
        finished_lengths=jnp.take_along_axis(lengths, index, 1),
        finished_scores=scores,
    )


def _score(sums, length, cfg: DecodingConfig):
    return sums / length.astype(jnp.float32) ** cfg.length_penalty


def _rows(x, index):
    """x[B, n, ...] taken at index int32[B, m] of its second axis."""
    return jnp.take_along_axis(x, index[:, :, None], 1)
