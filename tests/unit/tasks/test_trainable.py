"""Published names of what is trained: upstream's lists tensor by tensor, and its counts."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.tasks.cot import ChainOfThought, CotConfig
from c2ser_jax.tasks.trainable import replace_params, select_params, trainable_pattern
from c2ser_jax.training.checkpoint import flatten
from conversions.c2ser_names import ADAPTED, References
from conversions.connector_names import SPEECH_MARKS, SPEECH_TOKENS, UNUSED
from tests.golden_roots import golden_cases

LISTS = golden_cases("c2ser_llm/c2ser_forward/trainable_by_fire_module.json")
GOLDEN = C2serConfig(
    acoustic=Emotion2VecConfig(width=32, heads=4, depth=1, prenet_depth=1),
    encoder=WhisperEncoderConfig(width=48, depth=2, heads=4, mlp_width=192),
    connector=ConnectorConfig(encoder_width=48, width=48, mlp_width=160, output_width=64),
    llm=Qwen2Config(
        vocabulary=512, width=64, depth=2, heads=4, key_value_heads=2, mlp_width=128,
        lora=LoraConfig(rank=4),
    ),
)  # fmt: skip
REAL = C2serConfig(llm=Qwen2Config(lora=LoraConfig()))

# REAL_SIZES.md, "Trainable parameters"; upstream counts three tensors that this model lacks.
COUNTS = {
    "link": 81_344_001,
    "encoder": 305_680_384,
    "llm": 15_138_816,
    "link_and_encoder": 387_024_385,
    "link_and_encoder_and_lora": 402_163_201,
}
NOT_HELD = {"ln_speech": 2_048, "speaker_head": 14_687_745, "unused speech rows": 4097 * 3584}


@functools.cache
def leaves(cfg: C2serConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape} of a model's parameters."""
    batch = {"audio": jnp.zeros((1, 1600)), "audio_samples": jnp.ones((1,), jnp.int32)}
    task = ChainOfThought(CotConfig(), cfg)
    return flatten(meta.unbox(jax.eval_shape(task.init, jax.random.key(0), batch)))


def trained(cfg: C2serConfig, name) -> dict[str, int]:
    pattern = trainable_pattern(name, has_adapters=cfg.llm.lora is not None)
    return {p: math.prod(leaf.shape) for p, leaf in leaves(cfg).items() if re.match(pattern, p)}


@pytest.mark.parametrize("file", LISTS, ids=str)
@pytest.mark.parametrize("name", COUNTS)
def test_the_trained_parameters_are_upstreams(file, name):
    names = json.loads(file.read_text())[name]["names"]
    references = References(ADAPTED, LoraConfig().targets)
    wanted = set()
    for one in names:
        if one.startswith(UNUSED):
            continue
        match = references.match(SPEECH_MARKS if one == SPEECH_TOKENS else one)
        assert match is not None, one
        wanted.add(match.target)
    assert wanted == trained(GOLDEN, name).keys()


@pytest.mark.parametrize("name", COUNTS)
def test_real_sizes_have_the_published_counts(name):
    held = COUNTS[name] - (sum(NOT_HELD.values()) if "link" in name else 0)
    assert sum(trained(REAL, name).values()) == held


def test_our_own_names():
    lora = trained(GOLDEN, "llm").keys()
    assert lora and all("lora_" in path for path in lora)
    assert trained(GOLDEN, "link_and_lora").keys() == trained(GOLDEN, "link").keys() | lora
    everything = {path for path in leaves(GOLDEN) if not path.endswith("positions")}
    assert trained(GOLDEN, "all").keys() == everything
    pattern = trainable_pattern("link_and_lora", has_adapters=False)
    assert re.match(pattern, "llm/layers/mlp/up_proj/kernel")


def test_a_selected_part_goes_back_into_its_place():
    params = {"llm": {"a": 1, "b": {"lora_a": 2}}, "connector": {"positions": 3, "x": 4}}
    pattern = trainable_pattern("link_and_lora", has_adapters=True)
    part = select_params(params, pattern)
    assert part == {"llm": {"b": {"lora_a": 2}}, "connector": {"x": 4}}
    others = {"llm": {"b": {"lora_a": 5}}, "connector": {"x": 6}}
    assert replace_params(params, others) == {
        "llm": {"a": 1, "b": {"lora_a": 5}}, "connector": {"positions": 3, "x": 6}
    }  # fmt: skip
    assert params["llm"]["b"]["lora_a"] == 2
