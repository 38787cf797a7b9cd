"""The golden C2SER model as an imported directory, its batches, and one program that runs them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.models.c2ser import C2ser, C2serConfig
from c2ser_jax.models.connector import ConnectorOutput
from c2ser_jax.models.lora import FACTORS
from c2ser_jax.training.checkpoint import flatten, nest, read_description, read_params
from conversions.c2ser_names import ADAPTED, llm_rules
from conversions.connector_names import (
    SPEECH_MARKS,
    SPEECH_TOKENS,
    connector_rules,
    encoder_rules,
)
from conversions.engine import Table


def load(directory: Path) -> tuple[C2serConfig, dict]:
    """(config, parameters on the host) of an imported model."""
    cfg = C2serConfig.from_dict(read_description(directory).model)
    return cfg, jax.tree.map(np.array, read_params(directory))


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def behind(values: np.ndarray, size: int, fill=0) -> np.ndarray:
    """The values [B, n, ...] with padding behind, [B, size, ...]."""
    widths = [(0, 0), (0, size - values.shape[1])] + [(0, 0)] * (values.ndim - 2)
    return np.pad(values, widths, constant_values=fill)


def batch_of(io: dict[str, np.ndarray], rows: int = 3, mel=171, prompt=47, answer=42) -> dict:
    """The model's inputs, padded to one shape; rows beyond the case's own repeat its first one.

    What lies in the padding is random, and repeated rows have no answer.
    """
    B = len(io["in/feats"])
    pick = [*range(B), *[0] * (rows - B)]
    lengths = io["in/feats_lengths"][pick].astype(np.int32)
    prompts = np.where(io["in/prompt"] < 0, 7, io["in/prompt"])[pick]
    answers = np.where(io["in/target_ids"] < 0, 9, io["in/target_ids"])[pick]
    sizes = np.where(np.arange(rows) < B, io["in/target_lengths"][pick], 0)
    return {
        "mel": (behind(io["in/feats"][pick], mel, 0.3), lengths),
        "tokens": io["in/ssl_raw"][pick],
        "prompt": behind(prompts, prompt, 5).astype(np.int32),
        "prompt_mask": np.arange(prompt) < io["in/prompt_lengths"][pick][:, None],
        "answer": behind(answers, answer, 3).astype(np.int32),
        "answer_mask": np.arange(answer) < sizes[:, None],
    }


def score(cfg: C2serConfig, params: dict, batch: dict):
    """(mean loss of the answer tokens, the model's output)."""
    mel = batch["mel"]
    audio, samples = jnp.zeros((len(mel[1]), 1)), jnp.zeros((len(mel[1]),), jnp.int32)
    output = C2ser(cfg).apply(
        {"params": params}, audio, samples, batch["prompt"], batch["prompt_mask"],
        batch["answer"], batch["answer_mask"], tokens=batch["tokens"], mel=mel,
    )  # fmt: skip
    chosen = jax.nn.log_softmax(output.logits)
    chosen = jnp.take_along_axis(chosen, batch["answer"][:, :, None], 2)[:, :, 0]
    real = batch["answer_mask"]
    return -jnp.where(real, chosen, 0.0).sum() / real.sum(), output


@functools.cache
def program(cfg: C2serConfig):
    """(trained, others, batch) -> ((loss, output), gradients of what is trained)."""
    loss = lambda trained, others, batch: score(cfg, joined(trained, others), batch)  # noqa: E731
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(cfg: C2serConfig, params: dict, batch: dict):
    """((loss, output), gradients {upstream's name: array}) of one padded batch."""
    (loss, output), gradients = program(cfg)(*split(params), batch)
    return (float(loss), jax.tree.map(np.asarray, output)), named(cfg, gradients)


def embedded(params: dict, batch: dict, heard: ConnectorOutput) -> tuple[np.ndarray, np.ndarray]:
    """What the language model reads, with its mask: prompt, begin, speech, end, answer."""
    table, B = params["llm"]["embed_tokens"]["embedding"], len(batch["prompt"])
    mark = lambda x: np.broadcast_to(x, (B, 1, x.shape[-1]))  # noqa: E731
    parts = [table[batch["prompt"]], mark(heard.begin), heard.embeddings, mark(heard.end),
             table[batch["answer"]]]  # fmt: skip
    real = np.ones((B, 1), bool)
    masks = [batch["prompt_mask"], real, heard.mask, real, batch["answer_mask"]]
    return np.concatenate(parts, 1), np.concatenate(masks, 1)


def split(params: dict) -> tuple[dict, dict]:
    """(what upstream's released config trains, the rest): encoder, connector, adapters."""
    trained, others = {}, {}
    for path, leaf in flatten(params).items():
        is_factor = path.split("/")[-1] in FACTORS
        is_table = path.endswith("/positions")
        chosen = is_factor or (path.startswith(("encoder/", "connector/")) and not is_table)
        (trained if chosen else others)[path] = leaf
    return nest(trained), nest(others)


def joined(tree: dict, other: dict) -> dict:
    return nest({**flatten(tree), **flatten(other)})


def named(cfg: C2serConfig, gradients: dict) -> dict[str, np.ndarray]:
    """Gradients under upstream's names, the two speech marks as rows of upstream's table."""
    assert cfg.llm.lora is not None
    rules = [*encoder_rules(), *connector_rules(), *llm_rules(ADAPTED, cfg.llm.lora.targets)]
    found, table = {}, Table(rules)
    for path, leaf in flatten(jax.tree.map(np.asarray, gradients)).items():
        for name, shape, match in table.sources(path, leaf.shape):
            if (part := match.within(leaf, shape)) is not None:
                found[SPEECH_TOKENS if name == SPEECH_MARKS else name] = part
    return found


def answer_logits(io: dict[str, np.ndarray]) -> np.ndarray:
    """Upstream's logits [B, L, V] of the answer tokens, from the position before each."""
    if "out/answer_logits" in io:
        return io["out/answer_logits"]
    L = io["in/target_ids"].shape[1]
    return io["out/logits"][:, -L - 1 : -1]


def with_base(tree: dict, merged: dict) -> dict:
    """A tree with adapters that add nothing, the kernels being those of `merged`."""
    made = {}
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            made[name] = with_base(leaf, merged[name])
        else:
            made[name] = np.zeros_like(leaf) if name == "lora_b" else merged.get(name, leaf)
    return made
