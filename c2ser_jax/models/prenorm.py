"""Pre-norm transformer blocks over padded sequences: Whisper's encoder, C2SER's connector.

Source: `TransformerEncoderLayer` of wenet, which upstream runs for both.

Shapes: B batch, S sequence, D width, H heads, L layers.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from c2ser_jax.models.attention import Implementation, attend
from c2ser_jax.models.layers import Dense, LayerNorm, dropout, full_precision, gelu, parameter

EPSILON = 1e-5
"""Of every norm in Whisper and in the connector."""


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a block needs to know; the models' own configs check the values.

    `dropout` acts on both branches before they are added, `activation_dropout` between fc1 and fc2.
    """

    width: int
    heads: int
    mlp_width: int
    activation: Literal["gelu", "relu"]
    key_bias: bool
    dropout: float = 0.0
    activation_dropout: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention_implementation: Implementation = "xla"


class KeyProjection(nn.Module):
    """x @ kernel without bias: a bias on the keys moves all logits of a query alike."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """Maps float[B, S, D] to dtype[B, S, features]."""
        shape, axes = (x.shape[-1], self.features), ("width", "qkv")
        kernel = parameter(self, "kernel", nn.initializers.normal(0.02), shape, axes)
        rows = x.astype(self.dtype).reshape(-1, shape[0])
        with full_precision(self.dtype):
            return jnp.dot(rows, kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, four projections of their own."""

    cfg: BlockConfig

    @nn.compact
    def __call__(self, x, mask):
        """Maps dtype[B, S, D], attending to where mask bool[B, S] is True, to the same shape."""
        cfg, dtype, (B, S, D) = self.cfg, jnp.dtype(self.cfg.dtype), x.shape

        def heads(y):
            y = y.reshape(B, S, cfg.heads, D // cfg.heads)
            return with_logical_constraint(y, ("batch", "time", "heads", "head_dim"))

        axes = ("width", "qkv")
        query = heads(Dense(D, axes, dtype, name="q_proj")(x))
        value = heads(Dense(D, axes, dtype, name="v_proj")(x))
        if cfg.key_bias:
            key = heads(Dense(D, axes, dtype, name="k_proj")(x))
        else:
            key = heads(KeyProjection(D, dtype, name="k_proj")(x))
        implementation = cfg.attention_implementation
        y = attend(query, key, value, mask=mask[:, None, None, :], implementation=implementation)
        return Dense(D, ("embed_in", "width"), dtype, name="out_proj")(y.reshape(B, S, D))


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + fc2(activation(fc1(norm(x))))."""

    cfg: BlockConfig

    @nn.compact
    def __call__(self, x, mask, *, train: bool = False):
        """Maps dtype[B, S, D] and mask bool[B, S], True = real, to dtype[B, S, D]."""
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        keys: list[Any] = [None] * 3
        if train and max(cfg.dropout, cfg.activation_dropout) > 0.0:
            keys = list(jax.random.split(self.make_rng("dropout"), 3))
        y = LayerNorm(EPSILON, name="self_attn_layer_norm")(x)
        x = x + dropout(SelfAttention(cfg, name="self_attn")(y, mask), cfg.dropout, keys[0])
        y = LayerNorm(EPSILON, name="final_layer_norm")(x)
        y = Dense(cfg.mlp_width, ("width", "mlp"), dtype, name="fc1")(y)
        y = gelu(y) if cfg.activation == "gelu" else nn.relu(y)
        y = with_logical_constraint(y, ("batch", "time", "mlp"))
        y = dropout(y, cfg.activation_dropout, keys[1])
        y = Dense(cfg.width, ("mlp", "width"), dtype, name="fc2")(y)
        x = x + dropout(y, cfg.dropout, keys[2])
        return with_logical_constraint(x, ("batch", "time", "width"))


def scan_prenorm(
    block: PreNormBlock, x, mask, *, depth: int, train: bool = False, collect: Collection[str] = ()
):
    """Runs x through `depth` copies of `block`, parameters stacked on a leading layer axis.

    x dtype[B, S, D], mask bool[B, S] -> (x, {"block_out": dtype[L, B, S, D]} where `collect` names
    it, else {}).
    """

    def body(block: PreNormBlock, x, _):
        y = block(x, mask, train=train)
        return y, {"block_out": y} if "block_out" in collect else {}

    if block.cfg.remat:
        body = nn.remat(body, prevent_cse=False)
    scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(block, x, None)
