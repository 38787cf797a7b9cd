"""Compares a converted model with its checkpoint: every number, then the features of a waveform."""

import contextlib
import importlib.util
import io
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig
from c2ser_jax.training.checkpoint import read_description, read_params
from conversions.emotion2vec import AUDIO, plain_name
from conversions.emotion2vec_import import state_dict_of
from conversions.emotion2vec_upstream import upstream_config
from conversions.export import source_layout
from conversions.reader import Checkpoint
from conversions.tensors import LazyTensor
from conversions.torch_writer import OutTensor

TOLERANCE = 1e-4
SAMPLES = 24_000


def verify(checkpoint: Checkpoint, directory: Path, seed: int = 0) -> int:
    """Prints what was compared; returns 0 when all agrees and 1 when something differs.

    The source implementation is FunASR's, which also runs fairseq's emotion2vec weights; where it
    isn't installed the comparison of the weights stands alone, and the output says so.
    """
    exported, _, _ = source_layout(directory)
    counts, differences = {"tensors": 0, "values": 0}, []
    compare(checkpoint.tree, exported, (), counts, differences)
    for line in differences[:10]:
        print(f"differs: {line}")
    print(
        f"weights: {counts['tensors']} tensors and {counts['values']} other values of "
        f"{checkpoint.path.name} compared, {len(differences)} differ"
    )
    if not has_source_implementation():
        print("features: not compared, since FunASR and torch are not installed (extra `bench`)")
        return 1 if differences else 0
    waveform = np.random.default_rng(seed).standard_normal(SAMPLES).astype(np.float32) * 0.1
    ours = our_features(directory, waveform)
    theirs = source_features(checkpoint, directory, waveform)
    worst = float(np.abs(ours - theirs).max())
    print(f"features: {ours.shape[0]} frames beside FunASR's, largest deviation {worst:.1e}")
    return 1 if differences or not worst < TOLERANCE else 0


def has_source_implementation() -> bool:
    """True where FunASR and torch are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("funasr", "torch"))


def compare(source: Any, exported: Any, path: tuple, counts: dict[str, int], out: list) -> None:
    """Walks both trees; tensors must be equal bit for bit once in the source's type."""
    name = "/".join(map(str, path)) or "the tree"
    if isinstance(source, LazyTensor):
        counts["tensors"] += 1
        if not isinstance(exported, OutTensor) or not _equal(source, exported):
            out.append(name)
    elif isinstance(source, dict) and isinstance(exported, dict):
        if list(source) != list(exported):
            out.append(f"{name} (its keys)")
        for key in source.keys() & exported.keys():
            compare(source[key], exported[key], (*path, key), counts, out)
    elif isinstance(source, list | tuple) and type(source) is type(exported):
        if len(source) != len(exported):
            out.append(f"{name} (its length)")
        for i, (a, b) in enumerate(zip(source, exported, strict=False)):
            compare(a, b, (*path, i), counts, out)
    else:
        counts["values"] += 1
        if source != exported and source == source:
            out.append(name)


def _equal(source: LazyTensor, exported: OutTensor) -> bool:
    if source.shape != exported.shape or source.dtype != exported.dtype:
        return False
    values = np.ascontiguousarray(exported.make())
    return source.read().tobytes() == values.tobytes()


def our_features(directory: Path, waveform: np.ndarray) -> np.ndarray:
    """Frames float32[T, D] of our encoder for float32[N]."""
    cfg = Emotion2VecConfig.from_dict(read_description(directory).model)
    params = read_params(directory)["encoder"]
    lengths = np.array([len(waveform)], np.int32)
    output: Any = jax.jit(Emotion2Vec(cfg).apply)({"params": params}, waveform[None], lengths)
    return np.asarray(output.frames[0])


def source_features(checkpoint: Checkpoint, directory: Path, waveform: np.ndarray) -> np.ndarray:
    """Frames float32[T, D] of FunASR's encoder with the checkpoint's own tensors."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import torch  # noqa: TID251 (the source implementation is a torch program)
        from funasr.models.emotion2vec.model import Emotion2vec
    model_config = read_description(directory).model
    model: Any = Emotion2vec(model_conf=upstream_config(model_config, None, False)["model"])
    _, source_state = state_dict_of(checkpoint)
    state = {
        plain_name(str(name)): torch.from_numpy(tensor.read().astype(np.float32))
        for name, tensor in source_state.items()
        if isinstance(tensor, LazyTensor)
    }
    if (scale := state.get(AUDIO + "alibi_scale")) is not None and scale.dim() == 4:
        state[AUDIO + "alibi_scale"] = scale[None]
    missing, _ = model.load_state_dict(state, strict=False)
    if missing:
        raise UserError(f"{checkpoint.path} lacks {missing[0]}, which FunASR's model needs")
    model.eval()
    with torch.no_grad():
        source = torch.from_numpy(waveform)
        if model_config["normalize_waveform"]:
            source = torch.nn.functional.layer_norm(source, source.shape)
        return model.extract_features(source[None], padding_mask=None)["x"][0].numpy()
