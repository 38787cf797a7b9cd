"""What every training stage of a fold does alike: the loop around its task, and its origins."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from c2ser_jax.bad_files import NAME, add_bad_files, found_by_all
from c2ser_jax.corpus import source_of
from c2ser_jax.data.augmentation import AugmentConfig
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.pipeline import DataConfig, TrainingData
from c2ser_jax.data.scanning import listing
from c2ser_jax.fold_run import FoldRun
from c2ser_jax.overrides import to_json
from c2ser_jax.parallel.distributed import data_share, is_main_process, to_host
from c2ser_jax.parallel.rules import batch_parts
from c2ser_jax.tasks.task import Task
from c2ser_jax.training.checkpoint import read_description, read_trained_on
from c2ser_jax.training.development import development_loss
from c2ser_jax.training.loop import LoopConfig, fit
from c2ser_jax.training.optimizer import OptimizerConfig
from c2ser_jax.training.preemption import Stopped
from c2ser_jax.training.state import final_params

Params = Mapping[str, Any]
Data = TypeVar("Data", bound=TrainingData)


class Stage(Protocol):
    """What the stages' configs have in common."""

    @property
    def batches(self) -> DataConfig:
        """How utterances become batches."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """How parameters move."""
        ...

    @property
    def loop(self) -> LoopConfig:
        """How long and how the stage trains."""
        ...


def train_stage(
    context: FoldRun, name: str, stage: Stage, task: Task, data: TrainingData,
    held: TrainingData | None, init_params: Params | None, *, loop: LoopConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains `task`, or goes on with it; returns the parameters it leaves, on the host.

    `held` are development data that the stage evaluates on, None without; `loop` takes the place of
    the stage's own settings.

    Raises:
      Stopped: a signal came; UserError: as `fit` says, or too many files failed.
    """
    run = context.run
    for bad in data.bad:
        context.say(f"{name}: left out {bad.id}: {bad.detail}")
    scanned, evaluate = len(data.bad), None
    if held is not None:
        evaluate = development_loss(task, held.evaluation_batches, mesh=context.mesh, seed=run.seed)
    loop = loop or stage.loop
    result = fit(
        task,
        data,
        cfg=loop if context.progress is None else replace(loop, progress=context.progress),
        optimizer_cfg=stage.optimizer,
        mesh=context.mesh,
        seed=run.seed,
        workdir=context.workdir / name,
        init_params=init_params,
        description={
            "run": to_json(run),
            "stage": name,
            "fold": context.fold.name,
            "labels": context.labels,
        },
        evaluate=evaluate,
        stop=context.stop,
    )
    _tell_bad(context, name, data, scanned)
    if result.stopped_by_signal:
        raise Stopped
    return to_host(final_params(result.state, task.ema_paths))


def stage_data(
    context: FoldRun, stage: Stage, make: Callable[..., Data]
) -> tuple[Data, Data | None]:
    """The stage's training data, and development data where it evaluates on them.

    `make` makes either; it takes what `TrainingData` does.
    """
    fold, (index, count) = context.fold, data_share(context.mesh)

    def made(utterances: list[Utterance], cfg: DataConfig) -> Data:
        return make(
            source_of(context.source, utterances), context.labels, cfg,
            seed=context.run.seed, process_index=index, process_count=count,
        )  # fmt: skip

    cfg = replace(stage.batches, row_multiple=row_multiple(context, stage))
    if not stage.loop.evaluate_every or not fold.dev:
        return made(fold.train, cfg), None
    plain = replace(cfg, sampling="shuffle", label_share=None, augment=AugmentConfig())
    return made(fold.train, cfg), made(fold.dev, plain)


def row_multiple(context: FoldRun, stage: Stage) -> int:
    """What the rows of a batch must be a multiple of, for the mesh and the microbatches."""
    parts = batch_parts(context.mesh) * stage.loop.microbatches
    return math.lcm(stage.batches.row_multiple, parts)


def origin_of(
    context: FoldRun, name: str, data: TrainingData, initial: Iterable[str]
) -> dict[str, Any]:
    """`origin` and `licence` of the model that a stage leaves, which began with `initial` ones."""
    run = context.run
    origin: dict[str, Any] = {
        "trained_by": "c2ser_jax.train",
        "run": run.name,
        "stage": name,
        "fold": context.fold.name,
        "initial": run.initial,
        "data_fingerprint": data.fingerprint,
        "seed": run.seed,
    }
    given = [read_description(directory) for directory in initial]
    if len(given) == 1:
        origin["initial_origin"] = given[0].origin
    elif given:
        origin["initial_origins"] = [one.origin for one in given]
    licences = sorted({one.licence for one in given if one.licence})
    return {"origin": origin, "licence": "; ".join(licences) or None}


def trained_on(data: TrainingData, before: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Training rows of this stage and of the models it began with, each once."""
    rows = [row for directory in before for row in read_trained_on(directory) or []]
    rows += data.trained_on()
    return list({(row.get("id"), row.get("audio_sha256")): row for row in rows}.values())


def _tell_bad(context: FoldRun, name: str, data: TrainingData, scanned: int) -> None:
    """Lists the files that failed after the first `scanned` ones, while the stage trained.

    Raises:
      UserError: together they are too many.
    """
    bad = found_by_all(data.bad)
    new = bad[scanned:]
    if new:
        context.say(f"{name}: {len(new)} files failed while it trained ({NAME}):\n{listing(new)}")
        if is_main_process():
            add_bad_files(context.shared, new)
    data.check_bad(bad)
