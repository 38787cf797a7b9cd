"""Generation: one prefill, then cached decoding in one loop that ends when every row has ended.

Shapes: B prompts, S positions, D width, V vocabulary, N = max_new_tokens.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from c2ser_jax.decoding.beam import beam_search
from c2ser_jax.decoding.cache import advance, start
from c2ser_jax.decoding.options import BEAM_MODES, DecodingConfig, Generated
from c2ser_jax.decoding.scores import forbid_early_end, is_end, mark, penalise
from c2ser_jax.decoding.trie import Trie
from c2ser_jax.errors import UserError
from c2ser_jax.models.qwen2 import KeyValues, Qwen2

__all__ = ["DecodingConfig", "Generated", "generate"]


@functools.partial(jax.jit, static_argnames=("model", "cfg"))
def generate(
    model: Qwen2, params: Any, embeddings, mask, cfg: DecodingConfig, *, key=None,
    trie: Trie | None = None,
) -> Generated:  # fmt: skip
    """Answers a batch of prompts; a row's answer is the same alone and in any batch.

    Args:
      model, params: the language model; its parameters alone.
      embeddings: float[B, S, D], prompt and speech, padded to a bucket length.
      mask: bool[B, S], True = real; padding may lie left, right or between.
      cfg: the rule; one program is compiled per rule and shape.
      key: for "sample": one key, or B keys that make a row's draws its own in any batch.
      trie: the answers allowed, all others being impossible.

    Returns:
      Generated.

    Raises:
      UserError: "sample" without a key, min_new_tokens together with a trie, or more positions
        than the model has.
    """
    needed = embeddings.shape[1] + cfg.max_new_tokens
    if needed > model.cfg.max_positions:
        raise UserError(
            f"a prompt of {embeddings.shape[1]} positions and {cfg.max_new_tokens} new tokens "
            f"need {needed} positions, the model has {model.cfg.max_positions}: shorten the prompt "
            "or lower max_new_tokens"
        )
    if trie is not None and cfg.min_new_tokens:
        raise UserError("min_new_tokens can't be kept with a list of allowed answers: set it to 0")
    if cfg.mode in BEAM_MODES:
        return beam_search(model, params, embeddings, mask, cfg, trie)
    if cfg.mode == "sample" and key is None:
        raise UserError("decoding mode 'sample' draws at random: give it a key")
    return _one_path(model, params, embeddings, mask, cfg, key, trie)


class _State(flax.struct.PyTreeNode):
    """step int32[]: tokens chosen so far; the rest per row."""

    step: jax.Array
    tokens: jax.Array  # int32[B, N]
    done: jax.Array  # bool[B]
    lengths: jax.Array  # int32[B]
    total: jax.Array  # float32[B]
    seen: jax.Array  # bool[B, V]
    node: jax.Array  # int32[B]
    cache: KeyValues


def _one_path(model, params, embeddings, mask, cfg, key, trie) -> Generated:
    B, N, V = embeddings.shape[0], cfg.max_new_tokens, model.cfg.vocabulary
    keys = None
    if cfg.mode == "sample":
        rows = jnp.arange(B)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows) if key.ndim == 0 else key

    def choose(state: _State, logits) -> _State:
        """Takes one more token of every open row."""
        raw = jax.nn.log_softmax(logits)
        logits = penalise(logits, state.seen, cfg.repetition_penalty)
        logits = forbid_early_end(logits, state.step, cfg)
        if trie is not None:
            logits = jnp.where(trie.permitted(state.node, V), logits, -jnp.inf)
        if keys is None:
            token = jnp.argmax(logits, -1).astype(jnp.int32)
        else:
            token = jax.vmap(functools.partial(_draw, cfg, state.step))(keys, logits)
        token = jnp.where(state.done, cfg.pad, token)
        gain = jnp.take_along_axis(raw, token[:, None], 1)[:, 0]
        return state.replace(
            step=state.step + 1,
            tokens=state.tokens.at[:, state.step].set(token),
            done=state.done | is_end(token, cfg.eos),
            lengths=state.lengths + ~state.done,
            total=state.total + jnp.where(state.done, 0.0, gain),
            seen=mark(state.seen, token),
            node=state.node if trie is None else trie.follow(state.node, token),
        )

    def body(state: _State) -> _State:
        last = lax.dynamic_index_in_dim(state.tokens, state.step - 1, 1, keepdims=False)
        logits, cache = advance(model, params, last, state.cache)
        return choose(state.replace(cache=cache), logits)

    logits, cache = start(model, params, embeddings, mask, N - 1)
    none = jnp.zeros(B, jnp.int32)
    state = _State(
        jnp.int32(0), jnp.full((B, N), cfg.pad, jnp.int32), jnp.zeros(B, bool), none,
        jnp.zeros(B), jnp.zeros((B, V), bool), none, cache,
    )  # fmt: skip
    state = choose(state, logits)
    state = lax.while_loop(lambda s: (s.step < N) & ~s.done.all(), body, state)
    return Generated(state.tokens, state.lengths, state.total / state.lengths)


def _draw(cfg: DecodingConfig, step, key, logits):
    """One token int32[] from logits float32[V] after temperature, top-k and top-p."""
    logits = logits / cfg.temperature
    if cfg.top_k:
        least = lax.top_k(logits, min(cfg.top_k, logits.shape[-1]))[0][-1]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if cfg.top_p < 1.0:
        ranked = -jnp.sort(-logits)
        before = jnp.cumsum(jax.nn.softmax(ranked)) - jax.nn.softmax(ranked)
        # The tokens whose better ones don't make up top_p already; the best always stays.
        least = jnp.where(before < cfg.top_p, ranked, jnp.inf).min()
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(jax.random.fold_in(key, step), logits).astype(jnp.int32)
