"""A small random language model, every size different."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config

LORA = LoraConfig(rank=3, alpha=5.0, dropout=0.5)
TINY = Qwen2Config(
    vocabulary=37, width=24, depth=2, heads=6, key_value_heads=2, mlp_width=20, lora=LORA,
    max_positions=200,
)  # fmt: skip


@functools.cache
def tiny_params(cfg: Qwen2Config = TINY, seed: int = 0) -> dict[str, Any]:
    """Random parameters, biases, norms and both factors included, on the host."""
    shapes = jax.eval_shape(Qwen2(cfg).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "scale":
            noise = 1 + 0.1 * noise
        elif path[-1].key != "embedding":
            noise = noise / np.sqrt(leaf.shape[-1])
        return noise.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes["params"]))


def prompts(sizes: list[int], length: int, side: str = "right", cfg: Qwen2Config = TINY):
    """(embeddings float32[B, S, D], mask bool[B, S]) of random prompts of the given sizes.

    Each row's real embeddings depend on its size alone; what lies in the padding is noise.
    """
    embeddings = np.random.default_rng(99).normal(size=(len(sizes), length, cfg.width))
    mask = np.zeros((len(sizes), length), bool)
    for row, size in enumerate(sizes):
        if side == "holes":
            places = np.sort(np.random.default_rng(size).permutation(length)[:size])
        else:
            places = np.arange(size) + (length - size if side == "left" else 0)
        values = np.random.default_rng(1000 + size).normal(size=(size, cfg.width))
        mask[row, places], embeddings[row, places] = True, values
    return embeddings.astype(np.float32), mask


def without_scan(cfg: Qwen2Config) -> Qwen2Config:
    return dataclasses.replace(cfg, scan_layers=False)
