"""Qwen2 and Qwen2.5: a causal language model with rotary positions and grouped-query attention.

The network is that of `Qwen2ForCausalLM` in transformers. Masks may have holes anywhere: a padded
position is seen by none and its output means nothing.

Shapes: B batch, S sequence, T slots of the cache, D width, H heads, K key-value heads, C channels
of one head, V vocabulary, L layers, Q chosen positions.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import lax

from c2ser_jax.errors import UserError
from c2ser_jax.models.attention import attend
from c2ser_jax.models.layers import (
    Dense,
    full_precision,
    parameter,
    reciprocal_root,
    rounded,
)
from c2ser_jax.models.qwen2_config import Qwen2Config

__all__ = [
    "KeyValues",
    "Qwen2",
    "Qwen2Config",
    "Qwen2Output",
    "stack_layers",
    "unstack_layers",
]

_CACHED = ("batch", "time", "kv_heads", "head_dim")


class KeyValues(flax.struct.PyTreeNode):
    """Keys and values of all layers, with what later tokens must know about their slots.

    keys (rotated) and values dtype[L, B, T, K, C], or a tuple of L arrays dtype[B, T, K, C] where
    the model doesn't scan its layers; mask bool[B, T], True = a real token lies there; used
    int32[], slots filled from the front, the same for all rows; position int32[B], that of the
    next token.
    """

    keys: Any
    values: Any
    mask: jax.Array
    used: jax.Array
    position: jax.Array


class Qwen2Output(flax.struct.PyTreeNode):
    """What the model says about a batch.

    logits float32[B, S, V] ("all"), [B, V] ("last"), [B, Q, V] (chosen) or None; last_hidden
    dtype[B, S, D], after the final norm; hidden_states None or dtype[L + 1, B, S, D], the
    embeddings first and `last_hidden` last; cache None or the `KeyValues` of these tokens, behind
    those given.
    """

    logits: jax.Array | None
    last_hidden: jax.Array
    hidden_states: jax.Array | None = None
    cache: KeyValues | None = None


class RmsNorm(nn.Module):
    """Divides by the root mean square of the last axis, then scales; computed in float32."""

    epsilon: float
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Returns x normalised, same shape and dtype."""
        ones = nn.initializers.ones_init()
        scale = parameter(self, "scale", ones, x.shape[-1:], ("width",), self.param_dtype)
        y = x.astype(jnp.float32)
        y = y * reciprocal_root(rounded(jnp.square(y).mean(-1, keepdims=True)) + self.epsilon)
        return y.astype(x.dtype) * scale.astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; q, k and v have biases, o has none."""

    cfg: Qwen2Config

    @nn.compact
    def __call__(self, x, rotation, mask, past=None, *, train: bool = False):
        """Attends from x dtype[B, S, D] to itself, or to a cache that x is written into.

        rotation: (cos, sin) float32[B, S, 1, C]; mask bool[B, 1, S, T], T = S without a cache;
        past: None, or (keys, values, layer, used) with the whole cache of the model.

        Returns (dtype[B, S, D], (keys, values)): those of x, dtype[B, S, K, C], or the whole cache.
        """
        cfg, (B, S, D) = self.cfg, x.shape
        H, K, C = cfg.heads, cfg.key_value_heads, cfg.head_width
        query = projection(cfg, "q_proj", H * C, ("width", "qkv"), True)(x, train=train)
        key = projection(cfg, "k_proj", K * C, ("width", "kv_heads"), True)(x, train=train)
        value = projection(cfg, "v_proj", K * C, ("width", "kv_heads"), True)(x, train=train)
        query, key, value = (y.reshape(B, S, -1, C) for y in (query, key, value))
        query = with_logical_constraint(query, ("batch", "time", "heads", "head_dim"))
        key, value = (with_logical_constraint(y, _CACHED) for y in (key, value))
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        kept = (key, value)
        if past is not None:
            kept, (key, value) = _write(past, key, value)
        y = attend(query, key, value, mask=mask, implementation=cfg.attention_implementation)
        y = projection(cfg, "o_proj", D, ("qkv", "width"), False)(
            y.reshape(B, S, H * C), train=train
        )
        return y, kept


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    cfg: Qwen2Config

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Maps dtype[B, S, D] to the same shape."""
        cfg, axes = self.cfg, ("width", "mlp")
        gate = projection(cfg, "gate_proj", cfg.mlp_width, axes, False)(x, train=train)
        up = projection(cfg, "up_proj", cfg.mlp_width, axes, False)(x, train=train)
        h = with_logical_constraint(_gated(gate, up), ("batch", "time", "mlp"))
        return projection(cfg, "down_proj", cfg.width, axes[::-1], False)(h, train=train)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(gate, up):
    """silu(gate) * up; over scanned layers the backward pass keeps these two alone."""
    return nn.silu(gate) * up


class Block(nn.Module):
    """Attention and perceptron, each behind a norm and around a residual."""

    cfg: Qwen2Config

    @nn.compact
    def __call__(self, x, rotation, mask, past=None, *, train: bool = False):
        """Maps x dtype[B, S, D] to (the same shape, keys and values as `Attention` returns)."""
        cfg = self.cfg
        y = norm(cfg, "input_layernorm")(x)
        y, kept = Attention(cfg, name="self_attn")(y, rotation, mask, past, train=train)
        x = x + y
        y = norm(cfg, "post_attention_layernorm")(x)
        x = x + Mlp(cfg, name="mlp")(y, train=train)
        return with_logical_constraint(x, ("batch", "time", "width")), kept


class TokenTable(nn.Module):
    """One vector per token: read as an embedding, multiplied with as a head."""

    cfg: Qwen2Config

    @nn.compact
    def __call__(self):
        """Returns the table param_dtype[V, D]."""
        shape = (self.cfg.vocabulary, self.cfg.width)
        init, axes = nn.initializers.normal(0.02), ("vocabulary", "width")
        return parameter(self, "embedding", init, shape, axes, jnp.dtype(self.cfg.param_dtype))


class Qwen2(nn.Module):
    """The language model: tokens or embeddings in, logits and a cache out."""

    cfg: Qwen2Config

    def setup(self):
        """Names the parts as the source checkpoint does."""
        cfg = self.cfg
        self.embed_tokens = TokenTable(cfg)
        self.layers = Block(cfg) if cfg.scan_layers else [Block(cfg) for _ in range(cfg.depth)]
        self.norm = norm(cfg, None)
        if not cfg.tied_head:
            self.lm_head = TokenTable(cfg)

    def __call__(
        self, tokens=None, *, embeddings=None, mask=None, positions=None, cache=None,
        visible=None, logits: Literal["all", "last", "none"] = "all", at=None,
        return_hidden: bool = False, return_cache: bool = False, train: bool = False,
    ):  # fmt: skip
        """Runs a batch of sequences, or continues those of a cache.

        Args:
          tokens: int32[B, S]; or None with
          embeddings: float[B, S, D].
          mask: bool[B, S], True = real; None: all are. Holes may lie anywhere.
          positions: int32[B, S]; None: a row's real tokens are counted (behind the cache's
            position), and padding has position 1, as upstream has it.
          cache: `KeyValues` with S free slots behind `used`; it is continued, and returned.
          visible: bool[B | 1, S, S], which of these tokens (second S) each of them (first S) may
            see, beside all real ones of the cache; None: itself and those before it.
          logits: of every position, of each row's last real one, or none at all.
          at: int32[B, Q], the positions whose logits are wanted; overrides `logits`.
          return_hidden: also returns the output of every layer.
          return_cache: also returns keys and values of a run without a cache (T = S).
          train: adapter dropout, which draws from the rng collection "dropout".

        Returns:
          Qwen2Output.

        Raises:
          UserError: both or neither of tokens and embeddings.
        """
        if (tokens is None) == (embeddings is None):
            raise UserError("give the language model either tokens or embeddings, not both")
        x = self.embed(tokens) if embeddings is None else embeddings.astype(self.cfg.dtype)
        B, S, _ = x.shape
        mask = jnp.ones((B, S), bool) if mask is None else mask.astype(bool)
        if positions is None:
            first = 0 if cache is None else cache.position[:, None]
            positions = jnp.where(mask, jnp.cumsum(mask, 1) - 1 + first, 1)
        rotation = rotary(positions, self.cfg.head_width, self.cfg.rope_theta)
        if visible is None:
            visible = jnp.tril(jnp.ones((1, S, S), bool))
        visible = visible & mask[:, None, :]
        if cache is None:
            x, hidden, keys, values = self._run(
                x, rotation, visible[:, None], None, return_hidden, train
            )
            after = KeyValues(keys, values, mask, jnp.int32(S), _next(positions, mask))
        else:
            seen = _cached_visibility(cache, visible)
            x, hidden, keys, values = self._run(x, rotation, seen, cache, return_hidden, train)
            written = lax.dynamic_update_slice(cache.mask, mask, (0, cache.used))
            position = jnp.maximum(cache.position, _next(positions, mask))
            after = KeyValues(keys, values, written, cache.used + S, position)
        x = self.norm(x)
        if hidden is not None:
            hidden = jnp.concatenate([hidden, x[None]])
        wants_cache = return_cache or cache is not None
        return Qwen2Output(
            self._logits(x, mask, logits, at), x, hidden, after if wants_cache else None
        )

    def embed(self, tokens):
        """Embeddings dtype[B, S, D] of tokens int32[B, S]."""
        x = jnp.asarray(self.embed_tokens())[tokens].astype(self.cfg.dtype)
        return with_logical_constraint(x, ("batch", "time", "width"))

    def head(self, x):
        """Logits float32[..., V] of final hidden states dtype[..., D]."""
        table = (self.embed_tokens if self.cfg.tied_head else self.lm_head)()
        rows = x.reshape(-1, x.shape[-1])
        with full_precision(self.cfg.dtype):
            y = lax.dot_general(
                rows, table.astype(self.cfg.dtype), (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )  # fmt: skip
        axes = ("batch", "time", "vocabulary") if x.ndim == 3 else ("batch", "vocabulary")
        return with_logical_constraint(y.reshape(*x.shape[:-1], -1), axes)

    def _logits(self, x, mask, which, at):
        if at is not None:
            return self.head(jnp.take_along_axis(x, at[:, :, None], 1))
        if which == "last":
            S = mask.shape[1]
            last = S - 1 - jnp.argmax(mask[:, ::-1], 1)
            return self.head(jnp.take_along_axis(x, last[:, None, None], 1)[:, 0])
        return self.head(x) if which == "all" else None

    def _run(self, x, rotation, mask, cache, return_hidden, train):
        """(last block's output, the inputs of all blocks or None, keys, values)."""
        run = _scanned if self.cfg.scan_layers else _unrolled
        return run(self.layers, self.cfg, x, rotation, mask, cache, return_hidden, train)


def _scanned(block, cfg, x, rotation, mask, cache, return_hidden, train):
    """Runs one block with parameters stacked over the layers; a cache travels in the carry."""

    def body(block, carry, layer):
        x, keys, values = carry
        past = None if cache is None else (keys, values, layer, cache.used)
        y, kept = block(x, rotation, mask, past, train=train)
        hidden = x if return_hidden else None
        return ((y, None, None), (kept, hidden)) if cache is None else ((y, *kept), (None, hidden))

    if cfg.remat and cache is None:
        body = nn.remat(body, prevent_cse=False)
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=cfg.depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    held = (None, None) if cache is None else (cache.keys, cache.values)
    (x, *held), (kept, hidden) = scan(block, (x, *held), jnp.arange(cfg.depth))
    keys, values = held if kept is None else kept
    return x, hidden, keys, values


def _unrolled(blocks, cfg, x, rotation, mask, cache, return_hidden, train):
    """Runs blocks with parameters, and layers of the cache, of their own."""

    def call(block, x, past):
        return block(x, rotation, mask, past, train=train)

    if cfg.remat and cache is None:
        call = nn.remat(call, prevent_cse=False)
    hidden, keys, values = [], [], []
    for layer, block in enumerate(blocks):
        hidden.append(x)
        past = None
        if cache is not None:
            past = (cache.keys[layer], cache.values[layer], None, cache.used)
        x, (key, value) = call(block, x, past)
        keys.append(key)
        values.append(value)
    return x, jnp.stack(hidden) if return_hidden else None, tuple(keys), tuple(values)


def _write(past, key, value):
    """Puts key and value dtype[B, S, K, C] into a cache.

    Returns ((keys, values), the whole cache; (keys, values) dtype[B, T, K, C], this layer's).
    """
    *held, layer, used = past
    start = (0, used, 0, 0) if layer is None else (layer, 0, used, 0, 0)
    written = []
    for whole, new in zip(held, (key, value), strict=True):
        new = new.astype(whole.dtype)
        new = new if layer is None else new[None]
        axes = _CACHED if layer is None else ("layers", *_CACHED)
        written.append(with_logical_constraint(lax.dynamic_update_slice(whole, new, start), axes))
    here = written if layer is None else [
        lax.dynamic_index_in_dim(whole, layer, 0, keepdims=False) for whole in written
    ]  # fmt: skip
    return tuple(written), tuple(here)


def _cached_visibility(cache, visible):
    """bool[B, 1, S, T]: the cache's real slots, and `visible` bool[B, S, S] behind them."""
    B, S, _ = visible.shape
    T = cache.mask.shape[1]
    before = (cache.mask & (jnp.arange(T) < cache.used))[:, None, :]
    before = jnp.broadcast_to(before, (B, S, T))
    return lax.dynamic_update_slice(before, visible, (0, 0, cache.used))[:, None]


def _next(positions, mask):
    """int32[B], one more than the highest position of a real token; 0 without any."""
    return jnp.where(mask, positions, -1).max(1) + 1


def rotary(positions, channels: int, theta: float):
    """(cos, sin) float32[B, S, 1, C] of the angles position * theta^(-2 i / C), twice in a row.

    positions int32[B, S] (Su et al. 2021, in the half-split form of transformers).
    """
    frequencies = theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    angles = jnp.concatenate([angles, angles], -1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """Turns channel i and i + C / 2 of x dtype[B, S, heads, C] by their angle, in float32."""
    wide = x.astype(jnp.float32)
    first, second = jnp.split(wide, 2, -1)
    return (wide * cos + jnp.concatenate([-second, first], -1) * sin).astype(x.dtype)


def norm(cfg: Qwen2Config, name: str | None) -> RmsNorm:
    """A norm of the model."""
    return RmsNorm(cfg.norm_epsilon, jnp.dtype(cfg.param_dtype), name=name)


def projection(cfg: Qwen2Config, name: str, features: int, axes, use_bias: bool) -> Dense:
    """A linear map of the model with its adapter, kernel stored [O, I]."""
    return Dense(
        features, axes, jnp.dtype(cfg.dtype), use_bias=use_bias,
        param_dtype=jnp.dtype(cfg.param_dtype), out_first=True, lora=cfg.adapter(name), name=name,
    )  # fmt: skip


def unstack_layers(params: Any, depth: int) -> dict[str, Any]:
    """Parameters for `scan_layers=False` from those of a scanned model: one subtree per layer."""
    made = {name: value for name, value in params.items() if name != "layers"}
    for i in range(depth):
        made[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
    return made


def stack_layers(params: Any, depth: int) -> dict[str, Any]:
    """Undoes `unstack_layers`."""
    layers = [params[f"layers_{i}"] for i in range(depth)]
    made = {name: value for name, value in params.items() if not name.startswith("layers_")}
    return {**made, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
