"""Runs the stages of one fold: pretrain, classify, probe, each from the encoder before it.

Layout of a fold's folder: `<stage>/metrics.jsonl`, `<stage>/checkpoints/`, `<stage>/model/` (what
`c2ser_jax.load` takes), `<stage>/curves.png`; the probe keeps the features it scored.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from c2ser_jax import inference
from c2ser_jax.config import ClassifyStage, PretrainStage, RunConfig
from c2ser_jax.corpus import source_of
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.pipeline import DataConfig, TrainingData
from c2ser_jax.data.sources import Source
from c2ser_jax.data.splits import Fold
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import classification_metrics
from c2ser_jax.evaluation.plots import curves_picture
from c2ser_jax.evaluation.probe_result import FoldResult
from c2ser_jax.evaluation.protocols import run_probe
from c2ser_jax.extraction.clips import Failure, clips_of
from c2ser_jax.extraction.features import extract_features
from c2ser_jax.extraction.store import ERRORS, FeatureStore, read_rows
from c2ser_jax.models.frontend_init import initial_front_end
from c2ser_jax.overrides import to_json
from c2ser_jax.parallel.distributed import data_share, is_main_process, to_host, wait_for_others
from c2ser_jax.parallel.rules import batch_parts
from c2ser_jax.tasks.classify import Classify
from c2ser_jax.tasks.pretrain import Pretrain
from c2ser_jax.tasks.task import merge_params
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    flatten,
    leaves_of,
    nest,
    read_params,
    read_trained_on,
    write_model,
)
from c2ser_jax.training.loop import fit

Params = Mapping[str, Any]


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved and the same command goes on."""


@dataclass(frozen=True)
class FoldRun:
    """What the stages of one fold share."""

    run: RunConfig
    fold: Fold
    source: Source
    labels: list[str]
    workdir: Path
    shared: Path
    """Folder for what the folds have in common."""
    mesh: Mesh
    progress: bool | None
    say: Callable[[str], None]
    lost: list[str]
    """Ids of test or probe utterances that turned out to be unusable; stages add to it."""


def run_fold(context: FoldRun) -> dict[str, FoldResult]:
    """Runs the fold's stages; returns the scores on its test utterances by stage.

    All processes of a run train; the main one alone scores while the others wait, and they return
    nothing.

    Raises:
      Stopped: a signal came; UserError: as the stages say.
    """
    run, encoder = context.run, _first_encoder(context)
    scores: dict[str, FoldResult] = {}
    for name in run.configured_stages():
        if name == "probe":
            _score(context, name, scores, lambda: _probe(context))
            continue
        stage = run.pretrain if name == "pretrain" else run.classify
        assert stage is not None
        params = _train(context, name, stage, encoder)
        encoder = params["encoder"]
        if name == "classify":
            directory = context.workdir / name / "model"
            _score(context, name, scores, functools.partial(score_model, context, directory))
    return scores


def _score(
    context: FoldRun, name: str, scores: dict[str, FoldResult], score: Callable[[], FoldResult]
) -> None:
    """Adds what `score` returns on the main process; returns on all of them when it is done."""
    if is_main_process():
        scores[name] = score()
    wait_for_others(f"{context.fold.name} {name} scored")


def _first_encoder(context: FoldRun) -> Params | None:
    """What the first stage starts from: a whole encoder, its stem alone, or None (as drawn)."""
    run = context.run
    if run.initial:
        return read_params(run.initial)["encoder"]
    if run.front_end is None or run.configured_stages()[0] == "probe":
        return None
    source = source_of(context.source, context.fold.train)
    audio = [source.load(place)[0] for place in range(len(source))]
    context.say(f"{context.fold.name}: fits the front end on {len(audio)} training utterances")
    return {"local_encoder": initial_front_end(run.encoder, run.front_end, audio, seed=run.seed)}


def _train(
    context: FoldRun, name: str, stage: PretrainStage | ClassifyStage, encoder: Params | None
) -> Params:
    """Trains one stage and writes its model directory; returns the parameters on the host."""
    run, folder = context.run, context.workdir / name
    data = _training_data(context, stage.batches, stage.loop.microbatches)
    for bad in data.bad:
        context.say(f"{name}: left out {bad.id}: {bad.detail}")
    task = _task(run, stage, context.labels, data)
    result = fit(
        task,
        data,
        cfg=dataclasses.replace(stage.loop, progress=context.progress),
        optimizer_cfg=stage.optimizer,
        mesh=context.mesh,
        seed=run.seed,
        workdir=folder,
        init_params=None if encoder is None else {"encoder": encoder},
        description={
            "run": to_json(run),
            "stage": name,
            "fold": context.fold.name,
            "labels": context.labels,
        },
    )
    if result.stopped_by_signal:
        raise Stopped
    state = result.state
    params = to_host(_final_params(state, task.ema_paths))
    if is_main_process():
        kind = "emotion2vec_pretraining" if name == "pretrain" else "emotion2vec_classifier"
        write_model(
            folder / "model",
            ModelDescription(
                kind=kind,
                model=to_json(run.encoder),
                labels=context.labels if name == "classify" else None,
                extra=_pretraining(stage),
                origin={"trained_by": "c2ser_jax.train", "run": run.name, "stage": name,
                        "fold": context.fold.name, "initial": run.initial,
                        "data_fingerprint": data.fingerprint, "seed": run.seed},
            ),
            leaves_of(params),
            trained_on=_trained_on(data, run.initial),
            replace=True,
        )  # fmt: skip
        curves_picture(folder / "metrics.jsonl", folder / "curves.png", title=f"{run.name}: {name}")
    wait_for_others(f"{context.fold.name} {name}")
    return params


def _pretraining(stage: PretrainStage | ClassifyStage) -> dict[str, Any]:
    """What export needs to know of the decoder."""
    return {"pretraining": to_json(stage.task.data2vec)} if isinstance(stage, PretrainStage) else {}


def _final_params(state: Any, teacher_paths: str | None) -> Params:
    """What the stage leaves: averaged parameters where an average (not a teacher) was kept."""
    params = merge_params(state.trainable, state.frozen)
    if state.ema is None or teacher_paths is not None:
        return params
    return nest({**flatten(params), **flatten(state.ema)})


def _task(run: RunConfig, stage: Any, labels: list[str], data: TrainingData) -> Any:
    if isinstance(stage, PretrainStage):
        return Pretrain(stage.task, run.encoder)
    counts = np.bincount(data.label[data.label >= 0], minlength=len(labels)).tolist()
    return Classify(stage.task, run.encoder, labels, counts)


def _training_data(context: FoldRun, cfg: DataConfig, microbatches: int) -> TrainingData:
    index, count = data_share(context.mesh)
    rows = math.lcm(cfg.row_multiple, batch_parts(context.mesh) * microbatches)
    return TrainingData(
        source_of(context.source, context.fold.train),
        context.labels,
        dataclasses.replace(cfg, row_multiple=rows),
        seed=context.run.seed,
        process_index=index,
        process_count=count,
    )


def _trained_on(data: TrainingData, initial: str) -> list[dict[str, Any]]:
    """Training rows of this stage and of the model it started from."""
    before = (read_trained_on(initial) or []) if initial else []
    return [*before, *data.trained_on()]


def score_model(context: FoldRun, directory: Path) -> FoldResult:
    """Scores a model directory on the fold's test utterances."""
    model = inference.load(directory)
    fold, rows = _labelled(context.fold), []
    for place, result in model.stream(clips_of(context.source, fold.test)):
        utterance = fold.test[place]
        if isinstance(result, Failure):
            _lose(context, utterance, result.message)
            continue
        rows.append(
            {
                "id": utterance.id,
                "fold": fold.name,
                "label": utterance.label,
                "predicted": result.label,
                "probabilities": result.probabilities,
                "speaker": utterance.speaker,
            }
        )
    rows.sort(key=lambda row: row["id"])
    metrics = classification_metrics(
        [row["label"] for row in rows], [row["predicted"] for row in rows], context.labels
    )
    heard = {u.speaker for u in [*fold.train, *fold.dev]} - {None}
    voices = {u.speaker for u in fold.test} - {None}
    return FoldResult(
        name=fold.name,
        sizes={"train": len(fold.train), "dev": len(fold.dev), "test": len(fold.test)},
        chosen={},
        grid=[],
        metrics=metrics,
        rows=rows,
        shared_speakers=len(heard & voices),
        speakers=len(voices),
    )


def _probe(context: FoldRun) -> FoldResult:
    """Trains the probe's grid on the fold's features, extracted with the encoder as it is now."""
    run, fold = context.run, _labelled(context.fold)
    assert run.probe is not None
    folder = _extract(context, [*fold.train, *fold.dev, *fold.test])
    result = run_probe(
        folder, [fold], run.probe, classes=context.labels, seed=run.seed, allow_missing=True
    )
    return result.folds[0]


def _extract(context: FoldRun, utterances: list[Utterance]) -> Path:
    """The folder of frame features of all `utterances` that can be used; computes missing ones.

    An encoder that no fold trains keeps one folder for all folds.
    """
    directory = _encoder_directory(context)
    trained = directory.is_relative_to(context.workdir)
    folder = (context.workdir / "probe" if trained else context.shared) / "features"
    settings = {"checkpoint": inference.fingerprint(directory), "granularity": "frame"}
    with FeatureStore(folder, settings, resume=True) as store:
        clips = clips_of(context.source, utterances)
        todo = [clip for clip in clips if not store.finished(clip.id, clip.path)]
        if todo:
            extract_features(inference.load(directory).engine, todo, store, granularity="frame")
    named = {utterance.id: utterance for utterance in utterances}
    for row in read_rows(folder / ERRORS):
        _lose(context, named[row["id"]], row["message"])
    return folder


def _lose(context: FoldRun, utterance: Utterance, message: str) -> None:
    context.say(f"{context.fold.name}: left out {utterance.id}: {message}")
    context.lost.append(utterance.id)


def _labelled(fold: Fold) -> Fold:
    def known(part: list[Utterance]) -> list[Utterance]:
        return [u for u in part if u.label is not None]

    return Fold(fold.name, known(fold.train), known(fold.dev), known(fold.test))


def _encoder_directory(context: FoldRun) -> Path:
    for name in ("classify", "pretrain"):
        directory = context.workdir / name / "model"
        if name in context.run.configured_stages() and directory.exists():
            return directory
    if context.run.initial:
        return Path(context.run.initial)
    raise UserError(
        "the probe has no encoder: configure a pretrain or classify stage, or give --initial DIR"
    )
