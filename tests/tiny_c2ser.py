"""A small random C2SER in a directory that `load` takes, every size different."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from c2ser_jax.data.cot_text import implicit_answer
from c2ser_jax.data.labels import EMO_EMILIA
from c2ser_jax.data.prompts import prompt
from c2ser_jax.data.tokenizer import TextTokenizer, train_tokenizer
from c2ser_jax.models.c2ser import C2ser, C2serConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec_config import ConvLayer
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, write_model
from tests.tiny_models import TINY as ENCODER

LABELS = EMO_EMILIA

ACOUSTIC = dataclasses.replace(
    ENCODER, depth=1, heads=2, conv_layers=(ConvLayer(6, 20, 20), ConvLayer(5, 16, 16))
)
# Hears 30 s as the real one does; the vocabulary holds `tiny_tokenizer`.
TINY = C2serConfig(
    acoustic=ACOUSTIC,
    encoder=WhisperEncoderConfig(mel_bins=20, width=28, depth=1, heads=2, mlp_width=36),
    connector=ConnectorConfig(
        encoder_width=28, width=32, depth=1, heads=4, mlp_width=44, output_width=48, positions=400
    ),
    llm=Qwen2Config(
        vocabulary=520, width=48, depth=2, heads=6, key_value_heads=2, mlp_width=56,
        max_positions=1000, lora=LoraConfig(rank=3, alpha=5.0),
    ),
    acoustic_token_count=5,
)  # fmt: skip


@functools.cache
def tiny_tokenizer() -> TextTokenizer:
    """Trained on prompts and short answers in both languages."""
    texts = [prompt(m, language) for m in ("explicit", "implicit") for language in ("en", "zh")]
    texts += [implicit_answer(label, language) for label in LABELS for language in ("en", "zh")]
    return train_tokenizer(texts, vocabulary=500)


@functools.cache
def tiny_params(cfg: C2serConfig = TINY, seed: int = 0) -> dict[str, Any]:
    """Random parameters, biases, norms and adapters included, on the host."""
    audio, samples = np.zeros((1, 3200), np.float32), np.array([3200], np.int32)
    tokens, mask = np.zeros((1, 2), np.int32), np.ones((1, 2), bool)
    shapes = jax.eval_shape(
        C2ser(cfg).init, jax.random.key(0), audio, samples, tokens, mask, tokens, mask
    )
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if name == "scale":
            return 1 + 0.1 * noise
        if name in ("embedding", "speech_marks"):
            return (0.2 if path[1].key == "lm_head" else 1.0) * noise  # unsure which token comes
        if name == "positions":
            return 0.1 * noise
        if name in ("kernel", "lora_a", "lora_b"):
            is_llm = path[0].key == "llm" and name == "kernel"  # [..., out, in]
            axes = leaf.shape[-1:] if is_llm else leaf.shape[:-1][-2:]
            return noise / np.sqrt(np.prod(axes))
        return 0.3 * noise

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes["params"]))


def write_tiny_c2ser(
    directory: Path,
    *,
    labels: list[str] | None = None,
    cfg: C2serConfig = TINY,
    seed: int = 0,
    extra: dict[str, Any] | None = None,
    trained_on: list[dict[str, Any]] | None = None,
    tokenizer: TextTokenizer | None = None,
) -> Path:
    """A model directory of kind "c2ser" with random parameters; labels: Emo-Emilia's seven."""
    described = {"languages": ["en", "zh"], "temperature": 1.0, **(extra or {})}
    write_model(
        directory,
        ModelDescription("c2ser", dataclasses.asdict(cfg), labels or LABELS, described),
        leaves_of(tiny_params(cfg, seed)),
        trained_on=trained_on,
        tokenizer=(tokenizer or tiny_tokenizer()).files(),
    )
    return directory
