"""Runs the stages of one fold, each from what the one before it left; the probe on its features.

Layout of a fold's folder: `<stage>/metrics.jsonl`, `<stage>/checkpoints/`, `<stage>/model/` (what
`c2ser_jax.load` takes), `<stage>/curves.png`; the probe keeps the features it scored.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from c2ser_jax.config import ANSWERING, ClassifyStage, PretrainStage, RunConfig
from c2ser_jax.corpus import sample_audio, source_of
from c2ser_jax.data.pipeline import TrainingData
from c2ser_jax.evaluation.plots import curves_picture
from c2ser_jax.evaluation.probe_result import FoldResult
from c2ser_jax.fold_run import FoldRun, alone, together
from c2ser_jax.initial_parts import acoustic_encoder
from c2ser_jax.models.frontend_init import initial_front_end
from c2ser_jax.overrides import to_json
from c2ser_jax.parallel.distributed import from_main_process
from c2ser_jax.scoring import check_initial, score_model, score_probe
from c2ser_jax.stage_run import origin_of, stage_data, train_stage, trained_on
from c2ser_jax.tasks.classify import Classify
from c2ser_jax.tasks.pretrain import Pretrain
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    flatten,
    has_checkpoint,
    leaves_of,
    nest,
    write_model,
)

Params = Mapping[str, Any]
STEM_MINUTES = 60  # of training audio, at most, for fitting a stem


def run_fold(context: FoldRun) -> dict[str, FoldResult]:
    """Runs the fold's stages; returns the scores on its test utterances by stage.

    All processes of a run train; the main one alone scores while the others wait, and they return
    nothing.

    Raises:
      Stopped: a signal came; UserError: as the stages say.
    """
    run, stop = context.run, context.stop
    alone(stop, lambda: check_initial(context))
    encoder = _first_encoder(context)
    scores: dict[str, FoldResult] = {}
    parts: Params = {}
    for name in run.configured_stages():
        found = None
        if name == "probe":
            found = alone(stop, lambda: score_probe(context))
        elif name in ANSWERING:
            from c2ser_jax.answer_scores import score_answers
            from c2ser_jax.cot_stages import train_answers

            parts = train_answers(context, name, parts or _acoustic(encoder))
            if run.score_answers:
                found = alone(stop, functools.partial(score_answers, context, name))
        else:
            encoder = _train(context, name, encoder)["encoder"]
            if name == "classify" and context.fold.test:
                directory = context.workdir / name / "model"
                found = alone(stop, functools.partial(score_model, context, directory))
        if found is not None:
            scores[name] = found
    return scores


def _acoustic(encoder: Params | None) -> Params:
    """The parts of the whole model that the stages before left."""
    return {} if encoder is None else {"acoustic": encoder}


def _first_encoder(context: FoldRun) -> Params | None:
    """What the first stage starts from: a whole encoder, its stem alone, or None.

    None: as drawn, or as the stage's checkpoint has it.
    """
    run = context.run
    first = run.configured_stages()[0]
    if first == "probe":
        return None
    if run.initial:
        return acoustic_encoder(run.initial, to_json(run.encoder), context.say)
    stem = alone(context.stop, lambda: _fitted_stem(context, first))
    stem = nest(from_main_process(flatten(stem or {})))
    return {"local_encoder": stem} if stem else None


def _fitted_stem(context: FoldRun, first: str) -> Params | None:
    """The stem fitted on a sample of the fold's training audio; None when none is wanted."""
    run = context.run
    if run.front_end is None or has_checkpoint(context.workdir / first / "checkpoints"):
        return None
    source = source_of(context.source, context.fold.train)
    audio = sample_audio(source, STEM_MINUTES * 60, seed=run.seed)
    context.say(f"{context.fold.name}: fits the front end on {len(audio)} training utterances")
    return initial_front_end(run.encoder, run.front_end, audio, seed=run.seed)


def _train(context: FoldRun, name: str, encoder: Params | None) -> Params:
    """Trains one stage and writes its model directory; returns the parameters on the host."""
    run = context.run
    stage = run.pretrain if name == "pretrain" else run.classify
    assert stage is not None
    data, held = together(context.stop, lambda: stage_data(context, stage, TrainingData))
    task = _task(run, stage, context.labels, data)
    initial = None if encoder is None else {"encoder": encoder}
    params = train_stage(context, name, stage, task, data, held, initial)
    alone(context.stop, lambda: _write(context, name, stage, params, data))
    return params


def _write(
    context: FoldRun,
    name: str,
    stage: PretrainStage | ClassifyStage,
    params: Params,
    data: TrainingData,
) -> None:
    """Writes what a finished stage leaves: its model directory and its curves."""
    run, folder = context.run, context.workdir / name
    kind = "emotion2vec_pretraining" if name == "pretrain" else "emotion2vec_classifier"
    before = [run.initial] if run.initial else []
    write_model(
        folder / "model",
        ModelDescription(
            kind=kind,
            model=to_json(run.encoder),
            labels=context.labels if name == "classify" else None,
            extra=_pretraining(stage),
            **origin_of(context, name, data, before),
        ),
        leaves_of(params),
        trained_on=trained_on(data, before),
        replace=True,
    )
    curves_picture(folder / "metrics.jsonl", folder / "curves.png", title=f"{run.name}: {name}")


def _pretraining(stage: PretrainStage | ClassifyStage) -> dict[str, Any]:
    """What export needs to know of the decoder."""
    return {"pretraining": to_json(stage.task.data2vec)} if isinstance(stage, PretrainStage) else {}


def _task(run: RunConfig, stage: Any, labels: list[str], data: TrainingData) -> Any:
    if isinstance(stage, PretrainStage):
        return _pretrain(stage.task, run.encoder)
    counts = None
    if stage.task.class_weights == "balanced":
        counts = tuple(np.bincount(data.label[data.label >= 0], minlength=len(labels)).tolist())
    return _classify(stage.task, run.encoder, tuple(labels), counts)


# Kept for equal settings: programs are kept by task, so folds trace and compile them once.
_pretrain = functools.lru_cache(maxsize=1)(Pretrain)
_classify = functools.lru_cache(maxsize=1)(Classify)
