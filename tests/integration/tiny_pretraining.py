"""A whole tiny pretraining run as a program, to be killed, resumed, and run on many devices.

python -m tests.integration.tiny_pretraining --workdir DIR [--output params.npz] …
"""

import argparse
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import optax

from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.pipeline import DataConfig, TrainingData
from c2ser_jax.data.sources import MemorySource
from c2ser_jax.errors import run_command
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec_config import ConvLayer, Emotion2VecConfig
from c2ser_jax.tasks.pretrain import Pretrain, PretrainConfig
from tests.unit.training.fakes import FakeData, FakeTask

LABELS = ("angry", "happy", "sad")


def make_task() -> Pretrain:
    """Returns the pretraining task with every part, dropouts and layer drop included, tiny."""
    encoder = Emotion2VecConfig(
        width=16,
        depth=2,
        prenet_depth=1,
        heads=4,
        mlp_ratio=2.0,
        conv_layers=(ConvLayer(8, 20, 20), ConvLayer(8, 16, 16)),
        position_width=3,
        position_depth=1,
        position_groups=2,
        extra_tokens=2,
    )
    decoder = Data2VecConfig(
        clone_batch=2,
        mask_length=2,
        average_top_k_layers=2,
        decoder_width=8,
        decoder_depth=1,
        decoder_kernel=3,
        decoder_groups=2,
    )
    return Pretrain(PretrainConfig(category_weight=1.0, data2vec=decoder), encoder)


def make_data(*, workers: int = 0, share: tuple[int, int] = (0, 1), rows: int = 8) -> TrainingData:
    """Returns batches of labelled, unlabelled and cropped noise of 0.2 to 0.6 s."""
    rng = np.random.default_rng(0)
    items = []
    for index in range(24):
        samples = int(rng.integers(3200, 9600))
        audio = (0.1 * rng.normal(size=samples)).astype(np.float32)
        label = (*LABELS, None)[index % 4]
        items.append((Utterance(id=f"u{index}", path="", label=label), audio))
    cfg = DataConfig(
        max_seconds=0.5,
        buckets=2,
        batch_seconds=60.0,
        max_rows=rows,
        row_multiple=rows,
        workers=workers,
        threads=1,
    )
    return TrainingData(
        MemorySource(items),
        LABELS,
        cfg,
        seed=1,
        process_index=share[0],
        process_count=share[1],
    )


def die_in_a_save(checkpoints: Path) -> None:
    """Kills this process with SIGKILL while its first checkpoint is being written."""
    for left_by_others in checkpoints.glob("[0-9]*tmp*"):
        shutil.rmtree(left_by_others)

    def watch() -> None:
        while not list(checkpoints.glob("[0-9]*tmp*")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """Trains, writes the final parameters, and returns 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--task", choices=("pretrain", "fake"), default="pretrain")
    parser.add_argument("--first-gradients", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--die-in-save", action="store_true")
    parser.add_argument("--mesh", type=int, nargs=3, default=(-1, 1, 1))
    args = parser.parse_args(argv)

    from c2ser_jax.compilation import enable_compilation_cache
    from c2ser_jax.parallel.distributed import (
        data_share,
        initialize_from_environment,
        to_host,
    )
    from c2ser_jax.parallel.mesh import MeshConfig, make_mesh
    from c2ser_jax.training.checkpoint import flatten
    from c2ser_jax.training.loop import LoopConfig, fit
    from c2ser_jax.training.optimizer import OptimizerConfig

    enable_compilation_cache()
    initialize_from_environment()
    mesh = make_mesh(MeshConfig(*args.mesh))
    if args.die_in_save:
        die_in_a_save(args.workdir / "checkpoints")

    def first_moments(state: Any, step: int) -> dict[str, float]:
        """After the first step Adam's first moments are the gradients, but for one factor."""
        if step == 1 and args.first_gradients is not None:
            slots = optax.tree.get(to_host(state.opt), "mu")
            write(args.first_gradients, flatten(slots))
        return {}

    if args.task == "pretrain":
        task, data = make_task(), make_data(workers=args.workers, share=data_share(mesh))
    else:
        task, data = FakeTask("encoder/"), FakeData(8, share=data_share(mesh))
    result = fit(
        task,
        data,
        cfg=LoopConfig(
            steps=args.steps,
            log_every=1,
            save_every=args.save_every,
            evaluate_every=1 if args.first_gradients else None,
            microbatches=2,
            ema_decay=0.9,
            ema_end_decay=0.99,
            ema_anneal_steps=8,
        ),
        optimizer_cfg=OptimizerConfig(learning_rate=1e-3, warmup_steps=2, clip_norm=1.0),
        mesh=mesh,
        seed=3,
        workdir=args.workdir,
        evaluate=first_moments if args.first_gradients else None,
    )
    parts = {"trainable": result.state.trainable, "ema": result.state.ema}
    leaves = flatten(to_host(parts))
    if args.output is not None and not result.stopped_by_signal:
        write(args.output, leaves)
    return 0


def write(path: Path, leaves: dict[str, np.ndarray]) -> None:
    """Writes {path: array} as one npz, from the first process."""
    from c2ser_jax.parallel.distributed import is_main_process

    if is_main_process():
        np.savez(path, **{name.replace("/", "."): leaf for name, leaf in leaves.items()})


if __name__ == "__main__":
    run_command(main)
