"""Golden Qwen2 weights as parameter trees."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np

from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config
from c2ser_jax.training.checkpoint import nest
from conversions.engine import Table, plan
from conversions.qwen2 import ADAPTER_TABLE, TABLE, adapter_rules, rules, target_shapes
from conversions.reader import open_checkpoint

C2SER = "llama_model.base_model.model."
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.1)


def filled(table, tensors, shapes) -> dict:
    made = plan(table, tensors, shapes, source="golden", hint="")
    return nest({path: make() for path, _, _, make in made.leaves()})


def load_huggingface(directory: Path) -> tuple[Qwen2Config, dict]:
    cfg = Qwen2Config.from_huggingface(json.loads((directory / "config.json").read_text()))
    tensors = open_checkpoint(directory / "model.safetensors").tree
    return cfg, filled(TABLE, tensors, target_shapes(cfg))


def load_adapter(directory: Path, cfg: Qwen2Config) -> tuple[Qwen2Config, dict]:
    cfg = dataclasses.replace(cfg, lora=LORA)
    shapes = {path: s for path, s in target_shapes(cfg).items() if "/lora_" in path}
    tensors = open_checkpoint(directory / "adapter_model.safetensors").tree
    return cfg, filled(ADAPTER_TABLE, tensors, shapes)


def load_c2ser(case: Path, file: str = "checkpoint.pt") -> tuple[Qwen2Config, dict]:
    config = json.loads((case / "llm" / "config.json").read_text())
    cfg = Qwen2Config.from_huggingface(config, lora=LORA)
    table = Table([*rules(C2SER, "", LORA.targets), *adapter_rules(C2SER)])
    tree = open_checkpoint(case / file).tree
    tensors = {name: tensor for name, tensor in tree.items() if name.startswith(C2SER)}
    return cfg, filled(table, tensors, target_shapes(cfg))


def joined(tree: dict, other: dict) -> dict:
    """Nested dicts with the leaves of both."""
    made = dict(tree)
    for name, value in other.items():
        made[name] = joined(made.get(name, {}), value) if isinstance(value, dict) else value
    return made


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def run(cfg: Qwen2Config, params: dict, *arguments, **arrays):
    """The model's output, compiled once per config, options and shapes."""
    options = {k: v for k, v in arrays.items() if isinstance(v, bool | str)}
    arrays = {k: v for k, v in arrays.items() if k not in options}
    return compiled(cfg, tuple(options.items()))({"params": params}, *arguments, **arrays)


@functools.cache
def compiled(cfg: Qwen2Config, options: tuple):
    return jax.jit(functools.partial(Qwen2(cfg).apply, **dict(options)))
