"""Names a C2SER model as upstream would, where no source's layout is kept: trained here, or merged.

What upstream's config.yaml has no word for stands in it under names of its own: `connector_conf`,
`ssl_dim`, `c2ser_jax`.
"""

import dataclasses
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from c2ser_jax.errors import UserError
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.training.checkpoint import ModelDescription
from conversions import export
from conversions.c2ser_config import CONFIG, OWN_FIELDS, PROMPTS, TASKS
from conversions.c2ser_names import ADAPTED, ALIASES, PLAIN, llm_rules
from conversions.connector_names import (
    SPEECH_MARKS,
    SPEECH_TOKENS,
    connector_rules,
    encoder_rules,
)
from conversions.engine import Table
from conversions.export import from_disk
from conversions.model_folder import MAX_FILE_BYTES
from conversions.torch_writer import OutTensor

NAMES = {"checkpoint": "C2SER_llm.pt", "emotion2vec": "emotion2vec.pt"}


def upstream_tree(
    directory: Path, description: ModelDescription, params: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({section: tree}, notes) as `c2ser_export.source_layout` returns them, of a trained model.

    The table of speech tokens has the two rows that are ever used.
    """
    cfg = C2serConfig.from_dict(description.model)
    heard = dataclasses.replace(
        description, kind="emotion2vec", model=description.model["acoustic"], labels=None, extra={}
    )
    ears = {
        "encoder/" + path.removeprefix("acoustic/"): leaf
        for path, leaf in params.items()
        if path.startswith("acoustic/")
    }
    ends = description.extra.get("eos")
    document = cfg.llm.to_huggingface()
    if isinstance(ends, list) and ends:
        document |= {"eos_token_id": ends[0], "bos_token_id": ends[0]}
    files = _tokenizer_files(directory)
    files["config.json"] = (json.dumps(document, indent=1) + "\n").encode()
    tree = {
        "checkpoint": _state(cfg, params),
        "files": _config_files(cfg, description.extra),
        "llm": {"files": files, "state_dict": {}},
        "emotion2vec": export.upstream_tree(heard, ears),
    }
    notes = {"names": NAMES, "metadata": {}, "llm": {"format": "pt"}, "emotion2vec": {}}
    return tree, notes


def merged_tree(
    description: ModelDescription, params: Mapping[str, np.ndarray], carried: Mapping[str, Any]
) -> dict[str, Any]:
    """The stored tree with a checkpoint and a config.yaml that know of no adapters."""
    state = _state(C2serConfig.from_dict(description.model), params)
    text, count = re.subn(rb"(?m)^use_lora:.*$", b"use_lora: false", carried["files"][CONFIG])
    files = carried["files"] | {CONFIG: text if count else text + b"\nuse_lora: false\n"}
    checkpoint = OrderedDict(state | carried["checkpoint"])
    return {**carried, "checkpoint": checkpoint, "files": files}


def _state(cfg: C2serConfig, params: Mapping[str, np.ndarray]) -> dict[str, OutTensor]:
    adapted = cfg.llm.lora.targets if cfg.llm.lora else ()
    prefix = ADAPTED if adapted else PLAIN
    table = Table([*encoder_rules(), *connector_rules(), *llm_rules(prefix, adapted)])
    state: dict[str, OutTensor] = OrderedDict()
    for path, leaf in params.items():
        for name, shape, match in table.sources(path, leaf.shape):
            part = match.within(leaf, shape)
            if part is not None:
                name = SPEECH_TOKENS if name == SPEECH_MARKS else name
                state[name] = from_disk(part, part.dtype)
    for alias, own in ALIASES.items():
        if prefix + own in state:
            state[alias] = state[prefix + own]
    return state


def _config_files(cfg: C2serConfig, extra: Mapping[str, Any]) -> dict[str, bytes]:
    encoder, connector, lora, ends = cfg.encoder, cfg.connector, cfg.llm.lora, extra.get("eos")
    document: dict[str, Any] = {
        "model": "llmasr",
        "llm_path": "./llm",
        "speech_token_num": 0,
        "use_lora": lora is not None,
        "input_dim": encoder.mel_bins,
        "encoder": "transformer",
        "encoder_conf": {
            "attention_heads": encoder.heads,
            "linear_units": encoder.mlp_width,
            "num_blocks": encoder.depth,
            "output_size": encoder.width,
            "dropout_rate": encoder.dropout,
            "positional_dropout_rate": encoder.position_dropout,
        },
        "connector_conf": {
            "attention_heads": connector.heads,
            "linear_units": connector.mlp_width,
            "num_blocks": connector.depth,
        },
        "ssl_dim": cfg.acoustic.width,
        "c2ser_jax": {name: getattr(cfg, name) for name in sorted(OWN_FIELDS)},
    }
    if lora is not None:
        document |= {"lora_rank": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    if isinstance(ends, list) and ends:
        document["dataset_conf"] = {"eod_id": ends[0]}
    files = {CONFIG: yaml.safe_dump(document, sort_keys=False).encode()}
    told = extra.get("prompts")
    lines = {task: (told.get(mode) or {}).get("en") for mode, task in TASKS.items()} if told else {}
    if texts := {task: [text] for task, text in lines.items() if text}:
        files[PROMPTS] = yaml.safe_dump(texts, sort_keys=False, allow_unicode=True).encode()
    return files


def _tokenizer_files(directory: Path) -> dict[str, bytes]:
    folder, files = directory / "tokenizer", {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            files[path.name] = path.read_bytes()
    if not files:
        raise UserError(f"{directory} has no tokenizer; train or convert the model again")
    return files
