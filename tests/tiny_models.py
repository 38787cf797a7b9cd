"""Small random models and audio for tests of the commands."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import soundfile

from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecClassifier, Emotion2VecConfig
from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, write_model

RATE = 16_000

# One frame per 320 samples as the real model has, in three convolutions that compile fast.
TINY = Emotion2VecConfig(
    width=24,
    depth=2,
    prenet_depth=1,
    heads=3,
    mlp_ratio=2.0,
    conv_layers=(ConvLayer(10, 20, 10), ConvLayer(12, 10, 8), ConvLayer(14, 6, 4)),
    position_width=10,
    position_depth=2,
    position_groups=4,
    extra_tokens=5,
)


@functools.cache
def tiny_params(cfg: Emotion2VecConfig, classes: int, seed: int = 0) -> dict[str, Any]:
    """Random parameters of a classifier, biases included, on the host."""
    audio, samples = np.zeros((1, 1000), np.float32), np.array([1000], np.int32)
    shapes = jax.eval_shape(
        Emotion2VecClassifier(cfg, classes).init, jax.random.key(0), audio, samples
    )
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1][-2:]))
        return 1 + 0.1 * noise if path[-1].key == "scale" else 0.3 * noise

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes["params"]))


def write_tiny(
    directory: Path,
    *,
    labels: list[str] | None = None,
    cfg: Emotion2VecConfig = TINY,
    seed: int = 0,
    trained_on: list[dict[str, Any]] | None = None,
    extra: dict[str, Any] | None = None,
) -> Path:
    """A model directory: a classifier with `labels`, an encoder without."""
    params = dict(tiny_params(cfg, len(labels or ["x"]), seed))
    if labels is None:
        del params["proj"]
    kind = "emotion2vec" if labels is None else "emotion2vec_classifier"
    description = ModelDescription(kind, dataclasses.asdict(cfg), labels, extra or {})
    write_model(directory, description, leaves_of(params), trained_on=trained_on)
    return directory


def voice(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Noise with a moving loudness and a tone, float32[N]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (120 + 30 * seed) * time)
    loudness = 0.1 + 0.08 * np.sin(2 * np.pi * 0.7 * time + seed)
    return (loudness * (0.5 * tone + 0.5 * rng.normal(size=len(time)))).astype(np.float32)


def write_wav(path: Path, audio: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    """A wav file of float32[N] or float32[N, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, subtype=subtype)
    return path


def write_scp(path: Path, rows: dict[str, Path | str]) -> Path:
    """A wav.scp list of {id: file}."""
    path.write_text("".join(f"{name} {file}\n" for name, file in rows.items()))
    return path
