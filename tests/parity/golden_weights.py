"""Golden checkpoints as parameter trees, and configs from the files' own `cfg`."""

import ast
import functools
import json
from pathlib import Path

import jax
import numpy as np

from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2Vec, Emotion2VecConfig
from conversions.reader import open_checkpoint
from conversions.tensors import LazyTensor

AUDIO = "modality_encoders.AUDIO."


def load_checkpoint(path: Path) -> dict:
    """The file's tree with arrays for tensors; wrapping keys such as `model` stay."""

    def arrays(value):
        if isinstance(value, dict):
            return {key: arrays(item) for key, item in value.items()}
        return value.read() if isinstance(value, LazyTensor) else value

    return arrays(open_checkpoint(path).tree)


def encode(cfg: Emotion2VecConfig, params: dict, audio, samples=None, **arrays):
    """The encoder with its intermediates, compiled once per config and shapes."""
    audio = np.atleast_2d(audio)
    samples = np.full(len(audio), audio.shape[1]) if samples is None else samples
    return _compiled(cfg)({"params": params}, audio, np.asarray(samples, np.int32), **arrays)


@functools.cache
def _compiled(cfg: Emotion2VecConfig):
    return jax.jit(functools.partial(Emotion2Vec(cfg).apply, return_layers=True))


def read_meta(case: Path) -> dict:
    return json.loads((case / "meta.json").read_text())


def read_arrays(case: Path) -> dict[str, np.ndarray]:
    with np.load(case / "io.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def conv_layers(spec: str) -> tuple[ConvLayer, ...]:
    """Reads `[(48, 10, 5)] + [(48, 3, 2)] * 4` without evaluating it."""

    def value(node):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * value(node.right)
        return ast.literal_eval(node)

    return tuple(ConvLayer(*layer) for layer in value(ast.parse(spec, mode="eval").body))


def config_from(model_cfg: dict, **overrides) -> Emotion2VecConfig:
    audio = model_cfg["modalities"]["audio"]
    values = dict(
        width=model_cfg["embed_dim"],
        depth=model_cfg["depth"],
        prenet_depth=audio["prenet_depth"],
        heads=model_cfg["num_heads"],
        mlp_ratio=model_cfg["mlp_ratio"],
        conv_layers=conv_layers(audio["feature_encoder_spec"]),
        position_width=audio["conv_pos_width"],
        position_depth=audio["conv_pos_depth"],
        position_groups=audio["conv_pos_groups"],
        extra_tokens=audio["num_extra_tokens"],
        alibi=audio["use_alibi_encoder"],
        norm_epsilon=float(model_cfg["norm_eps"]),
        normalize_waveform=False,
    )
    return Emotion2VecConfig(**{**values, **overrides})


def encoder_params(state: dict, cfg: Emotion2VecConfig) -> dict:
    """The encoder's tree from fairseq names; what the state lacks is left out (the teacher's)."""
    tree: dict = {}

    def put(path: str, array):
        node = tree
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.ascontiguousarray(array)

    def norm(source: str, target: str):
        if f"{source}.weight" in state:
            put(f"{target}/scale", state[f"{source}.weight"])
            put(f"{target}/bias", state[f"{source}.bias"])

    def blocks(source: str, target: str, depth: int):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            kernels = [state[f"{source}.{i}.{name}.weight"].T for i in range(depth)]
            put(f"{target}/{name.replace('.', '/')}/kernel", np.stack(kernels))
            biases = [state[f"{source}.{i}.{name}.bias"] for i in range(depth)]
            put(f"{target}/{name.replace('.', '/')}/bias", np.stack(biases))
        for name in ("norm1", "norm2"):
            for leaf, torch_leaf in (("scale", "weight"), ("bias", "bias")):
                leaves = [state[f"{source}.{i}.{name}.{torch_leaf}"] for i in range(depth)]
                put(f"{target}/{name}/{leaf}", np.stack(leaves))

    for i in range(len(cfg.conv_layers)):
        source = f"{AUDIO}local_encoder.conv_layers.{i}"
        if f"{source}.0.weight" in state:
            kernel = state[f"{source}.0.weight"].transpose(2, 1, 0)
            put(f"local_encoder/conv_{i}/kernel", kernel)
            norm(f"{source}.2.1", f"local_encoder/norm_{i}")
    if f"{AUDIO}project_features.2.weight" in state:
        norm(f"{AUDIO}project_features.1", "project_features/norm")
        put("project_features/proj/kernel", state[f"{AUDIO}project_features.2.weight"].T)
        put("project_features/proj/bias", state[f"{AUDIO}project_features.2.bias"])
    for i in range(cfg.position_depth):
        source = f"{AUDIO}relative_positional_encoder.{i + 1}.0"
        target = f"relative_positional_encoder/conv_{i}"
        put(f"{target}/kernel", state[f"{source}.weight"].transpose(2, 1, 0))
        put(f"{target}/bias", state[f"{source}.bias"])
    put("extra_tokens", state[f"{AUDIO}extra_tokens"][0])
    put("alibi_scale", state[f"{AUDIO}alibi_scale"][:, 0, :, 0, 0])
    norm(f"{AUDIO}context_encoder.norm", "context_encoder/norm")
    blocks(f"{AUDIO}context_encoder.blocks", "context_encoder/blocks", cfg.prenet_depth)
    blocks("blocks", "blocks", cfg.depth)
    return tree


def decoder_params(state: dict) -> dict:
    tree, i = {}, 0
    while (source := f"{AUDIO}decoder.blocks.{i}.0") + ".weight" in state:
        kernel = np.ascontiguousarray(state[f"{source}.weight"].transpose(2, 1, 0))
        tree[f"conv_{i}"] = {"kernel": kernel, "bias": state[f"{source}.bias"]}
        i += 1
    kernel = np.ascontiguousarray(state[f"{AUDIO}decoder.proj.weight"].T)
    tree["proj"] = {"kernel": kernel, "bias": state[f"{AUDIO}decoder.proj.bias"]}
    return tree
