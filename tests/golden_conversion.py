"""The golden C2SER checkpoint's neighbours, and its conversion into one model directory."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, write_model
from conversions.__main__ import main
from tests.golden_roots import golden_cases
from tests.tiny_models import TINY, tiny_params

GOLDEN = golden_cases("c2ser_llm/c2ser_forward")[0]
ACOUSTIC = dataclasses.replace(
    TINY, width=36, heads=3, extra_tokens=10, prenet_depth=1, depth=1, normalize_waveform=False
)
"""As wide as the vectors that the golden checkpoint was made with; its weights are random."""


def write_acoustic(file: Path, cfg=ACOUSTIC) -> Path:
    """An Emotion2Vec-S checkpoint in fairseq's layout."""
    directory = file.parent / f"{file.stem}_model"
    params = {"encoder": jax.tree.map(np.float32, tiny_params(cfg, 1)["encoder"])}
    description = ModelDescription("emotion2vec", dataclasses.asdict(cfg))
    write_model(directory, description, leaves_of(params))
    assert main(["export", "emotion2vec", "--from", str(directory), "--to", str(file)]) == 0
    return file


def arguments(target: Path, acoustic: Path, *more: str, checkpoint: Path | None = None) -> list:
    """The command that converts a checkpoint, the golden one by default."""
    source = checkpoint or GOLDEN / "checkpoint.pt"
    told = ["--config", str(GOLDEN / "config.yaml"), "--llm", str(GOLDEN / "llm")]
    told += ["--emotion2vec", str(acoustic), "--from", str(source), "--to", str(target)]
    return ["c2ser", *told, *more]


def convert(target: Path, acoustic: Path, *more: str, checkpoint: Path | None = None) -> Path:
    """A model directory of kind "c2ser"; later options win."""
    assert main(arguments(target, acoustic, *more, checkpoint=checkpoint)) == 0
    return target
