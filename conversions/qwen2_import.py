"""Turns an opened Qwen2 folder, with or without a peft adapter, into a model directory."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2 import Qwen2Config
from c2ser_jax.training.checkpoint import ModelDescription
from conversions.emotion2vec_import import Options, Prepared
from conversions.engine import Table, plan
from conversions.model_folder import (
    FORMAT,
    MAX_FILE_BYTES,
    fingerprint,
    read_json_file,
    weight_files,
)
from conversions.qwen2 import HEAD, PEFT, adapter_facts, adapter_rules, rules, target_shapes
from conversions.reader import Checkpoint, open_checkpoint
from conversions.source_tree import Carrier
from conversions.tensors import LazyTensor

FAMILY = KIND = "qwen2"
CARRIED = re.compile(r"model\.layers\.[0-9]+\.self_attn\.rotary_emb\.inv_freq")
"""Entries that are known and have no place in the model: kept for export."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def prepare(checkpoint: Checkpoint, options: Options) -> Prepared:
    """Maps a folder onto the model; raises `UserError` for anything that doesn't fit.

    Weights that the files hold in bfloat16 stay so; an adapter (`options.lora`) is float32.
    """
    path = checkpoint.path
    if checkpoint.format != FORMAT or options.config is not None:
        raise UserError(
            f"{path}: qwen2 is read from a Hugging Face folder with its own config.json; give the "
            "folder and no --config"
        )
    document = read_json_file(checkpoint, "config.json")
    if document is None:
        raise UserError(f"{path} has no config.json; copy or download it")
    cfg = Qwen2Config.from_huggingface(document)
    state: dict[str, LazyTensor] = checkpoint.tree["state_dict"]
    weights = {
        name: tensor
        for name, tensor in state.items()
        if not CARRIED.fullmatch(name) and not (cfg.tied_head and name == HEAD)
    }
    if weights and all(tensor.dtype.name == "bfloat16" for tensor in weights.values()):
        cfg = dataclasses.replace(cfg, param_dtype="bfloat16")
    tensors, adapter_config = dict(weights), None
    if options.lora is not None:
        lora, factors, adapter_config = read_adapter(options.lora)
        cfg = dataclasses.replace(cfg, lora=lora)
        tensors |= factors
    made = plan(
        Table([*rules(), *adapter_rules(PEFT, adapter="")]),
        tensors,
        target_shapes(cfg),
        source=str(path) if options.lora is None else f"{path} with {options.lora}",
        hint="Give a folder whose config.json, weights and adapter belong together",
        keeps_half=lambda parameter: "/lora_" not in parameter,
    )
    size, digest = fingerprint(weight_files(checkpoint))
    is_weight = {id(tensor): name for name, tensor in weights.items()}
    layout = {"family": FAMILY, "format": checkpoint.format, "state_path": ["state_dict"]}
    carrier = Carrier(checkpoint.tree, is_weight, layout | {"metadata": checkpoint.notes})
    files = checkpoint.tree["files"]
    description = ModelDescription(
        kind=KIND,
        model=dataclasses.asdict(cfg),
        extra={} if adapter_config is None else {"adapter_config": adapter_config},
        origin={
            "family": FAMILY,
            "file": path.name,
            "bytes": size,
            "sha256": digest,
            "format": checkpoint.format,
            "config": "config.json",
            "notes": {} if options.lora is None else {"adapter": options.lora.name},
            "carried tensors": len(carrier.tensors),
        },
        licence=options.licence,
    )
    tokenizer = {name: files[name] for name in TOKENIZER_FILES if name in files}
    return Prepared(description, made, carrier, tokenizer)


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, LazyTensor], dict[str, Any]]:
    """(config, factors by their names, adapter_config.json) of a peft folder.

    Raises:
      UserError: a file is missing, the adapter is of another kind, or its rank is not that of its
        tensors.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no peft adapter: it has no {name}")
    config = _read_table(folder / ADAPTER_FILES[0])
    for wrong, sentence in _unsupported(config):
        if wrong:
            raise UserError(f"{folder / ADAPTER_FILES[0]}: {sentence}")
    tensors = open_checkpoint(folder / ADAPTER_FILES[1]).tree
    facts = adapter_facts(tensors, PEFT, adapter="")
    if facts is None:
        raise UserError(f"{folder / ADAPTER_FILES[1]} holds no adapter of a Qwen2")
    rank, adapted = facts
    if rank != config["r"]:
        raise UserError(
            f"{folder} has factors of rank {rank} where its adapter_config.json says r "
            f"{config['r']}; give the config that belongs to them"
        )
    lora = LoraConfig(
        rank=rank,
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=adapted,
    )
    return lora, tensors, config


def _unsupported(config: Mapping[str, Any]):
    kind = config.get("peft_type")
    yield kind != "LORA", f"peft_type is {kind!r:.40}; only LORA is implemented"
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        yield not is_number, f"{name} is {value!r:.40}; wanted a number"
    for name in ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
                 "modules_to_save"):  # fmt: skip
        value = config.get(name)
        yield bool(value), f"{name} is {value!r:.60}, which is not implemented"
    bias = config.get("bias", "none")
    yield bias != "none", f"bias is {bias!r:.40}; only 'none' is implemented"


def _read_table(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is too large for a config")
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON; copy or download it again") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} is no JSON table; copy or download it again")
    return table
