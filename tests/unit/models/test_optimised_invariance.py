"""Batch invariance in code as users compile it: the other tests run with LLVM's optimiser off."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[3]
PROGRAM = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2Vec, Emotion2VecConfig

cfg = Emotion2VecConfig(
    width=64, depth=2, prenet_depth=1, heads=4, mlp_ratio=2.0, extra_tokens=2,
    conv_layers=(ConvLayer(64, 40, 20), ConvLayer(64, 8, 8), ConvLayer(64, 2, 2)),
    position_width=27, position_depth=3, position_groups=4,
)
model = Emotion2Vec(cfg)
run = jax.jit(model.apply)
shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8000)), jnp.array([8000]))
generator = np.random.default_rng(0)


def draw(path, leaf):
    noise = generator.standard_normal(leaf.shape).astype(np.float32)
    if path[-1].key == "kernel":
        return noise / np.sqrt(np.prod(leaf.shape[:-1][-2:]))
    return 1 + 0.1 * noise if path[-1].key == "scale" else 0.1 * noise


params = jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))
clips = [generator.standard_normal(n).astype(np.float32) for n in (12345, 8000, 20011, 31999)]


def first(chosen, samples):
    audio = np.zeros((len(chosen), samples), np.float32)
    for row, clip in zip(audio, chosen):
        row[: len(clip)] = clip
    output = run(params, audio, np.array([len(clip) for clip in chosen], np.int32))
    parts = output.frames[0, : cfg.frames(12345)], output.tokens[0], output.pooled[0]
    return np.concatenate([np.ravel(part) for part in parts])


batch = first(clips, 32000)
print(np.abs(first(clips[:2], 32000) - batch).max())
print(np.abs(first(clips[:1], 12345) - batch).max())
print(np.abs(first([clips[0][:-160], clips[1]], 32000) - batch).max())
"""


def test_neighbours_change_no_bit_and_padding_almost_none():
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    neighbours, padding, other_audio = (float(line) for line in done.stdout.split())
    assert neighbours == 0.0
    assert padding < 1e-5
    assert other_audio > 1e-3
