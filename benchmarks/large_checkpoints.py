"""Writes large random checkpoints in published layouts: Qwen2 in shards, C2SER with its companions.

Values are drawn as bits of bfloat16, one tensor in memory at a time; a name always gets the same.
"""

import dataclasses
import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import yaml

from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.qwen2 import Qwen2Config
from conversions import emotion2vec, qwen2
from conversions.c2ser_names import ADAPTED, llm_rules, target_shapes
from conversions.connector_names import (
    SPEECH_MARKS,
    SPEECH_TOKENS,
    connector_rules,
    encoder_rules,
)
from conversions.emotion2vec_upstream import upstream_config
from conversions.engine import Table
from conversions.export import write_flat
from conversions.torch_writer import OutTensor, write_torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SPEECH_ROWS = 4099
TOKENS = 300  # of the tokenizer: far fewer than the embedding has rows
STEM = tuple(ConvLayer(64, layer.kernel, layer.stride) for layer in Emotion2VecConfig().conv_layers)
ACOUSTIC = Emotion2VecConfig(width=96, heads=6, depth=1, prenet_depth=1, conv_layers=STEM)


def random_tensor(name: str, shape: tuple[int, ...]) -> OutTensor:
    """bfloat16 numbers of a size of 0.008 to 0.03 and either sign, drawn from the name."""

    def make() -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        bits = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16) & 0x80FF | 0x3C00
        return bits.view(BFLOAT16).reshape(shape)

    return OutTensor(shape, BFLOAT16, make)


def write_qwen2(folder: Path, cfg: Qwen2Config, shards: int) -> None:
    """A Hugging Face folder with a made-up tokenizer, its weights in bfloat16 shards."""
    folder.mkdir()
    document = cfg.to_huggingface() | {"eos_token_id": TOKENS - 1}
    vocabulary = {f"token{i}": i for i in range(TOKENS)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    state = {
        name: random_tensor(name, shape)
        for path, full in qwen2.target_shapes(cfg).items()
        for name, shape, _ in qwen2.TABLE.sources(path, full)
    }
    names, weight_map = list(state), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_flat(folder / file, {name: state[name] for name in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_c2ser(folder: Path, cfg: C2serConfig, shards: int) -> Mapping[str, Path]:
    """C2SER_llm.pt with the frozen language model and aliases, config.yaml, llm/, e2vs.pt.

    Returns the paths by the options of the conversion. The folder's weights equal the
    checkpoint's, as those of the published files do.
    """
    assert cfg.llm.lora is not None
    write_qwen2(folder / "llm", cfg.llm, shards)
    targets = cfg.llm.lora.targets
    table = Table([*encoder_rules(), *connector_rules(), *llm_rules(ADAPTED, targets)])
    state: OrderedDict[str, OutTensor] = OrderedDict()
    for path, full in target_shapes(cfg).items():
        for name, shape, _ in table.sources(path, full):
            shape = (SPEECH_ROWS, *shape[1:]) if name == SPEECH_MARKS else shape
            name = SPEECH_TOKENS if name == SPEECH_MARKS else name
            same = name.removeprefix(ADAPTED).replace(".base_layer", "")
            state[name] = random_tensor(same, shape)
    state["embed_tokens.weight"] = state[ADAPTED + qwen2.EMBEDDING]
    if not cfg.llm.tied_head:
        state["lm_head.weight"] = state[ADAPTED + qwen2.HEAD]
    write_torch(folder / "C2SER_llm.pt", state)
    config = {
        "use_lora": True, "lora_rank": cfg.llm.lora.rank, "lora_alpha": cfg.llm.lora.alpha,
        "encoder_conf": {"attention_heads": cfg.encoder.heads},
        "connector_conf": {"attention_heads": cfg.connector.heads},
        "ssl_dim": cfg.acoustic.width,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_acoustic(folder / "e2vs.pt", cfg.acoustic)
    return {"--from": folder / "C2SER_llm.pt", "--llm": folder / "llm",
            "--emotion2vec": folder / "e2vs.pt"}  # fmt: skip


def write_acoustic(file: Path, cfg: Emotion2VecConfig) -> None:
    """An Emotion2Vec-S in fairseq's layout."""
    shapes = emotion2vec.target_shapes(cfg, None, None)
    state = {
        name: random_tensor(name, shape)
        for path, full in shapes.items()
        for name, shape, _ in emotion2vec.TABLE.sources(path, full)
    }
    write_torch(
        file, {"cfg": upstream_config(dataclasses.asdict(cfg), None, False), "model": state}
    )
