"""The stages of chain of thought: explicit answers first, then implicit ones from what that left.

A fold's folder gets, beside what every stage leaves, `answers/`: the texts that it trains on
(`cot_texts.jsonl`, to be read and corrected), the bounds of the style words, the tokenizer.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.config import ANSWERING, CotStage, RunConfig
from c2ser_jax.corpus import source_of
from c2ser_jax.data.audio import BadAudio
from c2ser_jax.data.cot_data import CotData, prompts_of
from c2ser_jax.data.cot_text import CotText, cot_texts, read_cot_texts, write_cot_texts
from c2ser_jax.data.labels import class_index
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.prompts import answer_language
from c2ser_jax.data.sources import Source
from c2ser_jax.data.speaking_style import StyleBounds
from c2ser_jax.data.tokenizer import (
    TextTokenizer,
    check_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.plots import curves_picture
from c2ser_jax.fold_run import FoldRun, alone, together
from c2ser_jax.initial_parts import (
    C2SER,
    initial_directories,
    initial_ends,
    initial_parts,
    tokenizer_directory,
)
from c2ser_jax.overrides import to_json
from c2ser_jax.stage_run import origin_of, stage_data, train_stage, trained_on
from c2ser_jax.tasks.cot import TEACHER, ChainOfThought
from c2ser_jax.tasks.trainable import select_params
from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, write_model
from c2ser_jax.training.loop import LoopConfig

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a fold's rows are answered with: texts by id, style bounds, and their tokenizer."""

    texts: dict[str, CotText]
    bounds: StyleBounds
    tokenizer: TextTokenizer


# Kept for equal settings: programs are kept by task, so folds trace and compile them once.
_task = functools.lru_cache(maxsize=2)(ChainOfThought)


def train_answers(context: FoldRun, name: str, parts: Params) -> dict[str, Any]:
    """Trains the stage `name` and writes its model directory.

    `parts` {part: parameters} are what the stage before left; parts, or leaves, that are lacking
    come from the run's initial models or are drawn. Returns all parameters, on the host.

    Raises:
      Stopped: a signal came; UserError: texts, tokenizer, sizes or audio that don't fit.
    """
    run, stop = context.run, context.stop
    stage: CotStage = getattr(run, name)
    assert run.c2ser is not None
    answers = _answers(context)
    model = run.c2ser.model(run.encoder)
    # Again: the one in the fold's folder may be older than what the run starts from.
    check_tokenizer(answers.tokenizer, model.llm.vocabulary, initial_ends(run))
    task = _task(stage.task, model)
    data, held = together(stop, lambda: _stage_data(context, name, stage, answers))
    silent = sum(u.id not in answers.texts for u in context.fold.train)
    if silent:
        context.say(f"{name}: {silent} training utterances have no answers and are left out")
    for utterance in data.left_out:
        context.say(f"{name}: left out {utterance}, which is too long")
    start = {**initial_parts(run), **parts}
    if stage.task.distillation_weight:
        start[TEACHER] = select_params(start, task.trainable)
    loop = answering_loop(stage.loop, task)
    params = train_stage(context, name, stage, task, data, held, start, loop=loop)
    params.pop(TEACHER, None)
    alone(stop, lambda: _write(context, name, task, params, data, answers))
    return params


def answering_loop(cfg: LoopConfig, task: ChainOfThought) -> LoopConfig:
    """The loop's settings with what the task trains, and averages if it averages anything."""
    return replace(
        cfg,
        trainable=task.trainable,
        ema_paths=cfg.ema_paths or task.trainable,
        frozen_dtype_paths=cfg.frozen_dtype_paths or rf"(?!{TEACHER}/)",
    )


def _stage_data(
    context: FoldRun, name: str, stage: CotStage, answers: Answers
) -> tuple[CotData, CotData | None]:
    """The stage's training data, and development data where it evaluates on them."""

    def data(source: Source, labels: list[str], cfg: DataConfig, **named: Any) -> CotData:
        known = [u for u in source.utterances if u.id in answers.texts]
        if not known:
            raise UserError(
                f"{context.fold.name}: no utterance has texts for the stage {name}; give rows a "
                "label, or data.cot_texts their ids"
            )
        return CotData(
            source_of(source, known),
            labels,
            cfg,
            stage.answers,
            answers.texts,
            answers.tokenizer,
            steps=stage.loop.steps,
            distils=stage.task.distillation_weight > 0,
            stage=name,
            **named,
        )

    return stage_data(context, stage, data)


def _answers(context: FoldRun) -> Answers:
    """Texts and tokenizer of the fold, made by the main process once and read by all."""
    folder = context.workdir / "answers"
    alone(context.stop, lambda: _prepare(context, folder))

    def read() -> Answers:
        texts = {one.id: one for one in read_cot_texts(folder / _TEXTS)}
        bounds = StyleBounds.load(folder / _BOUNDS)
        return Answers(texts, bounds, load_tokenizer(folder / _TOKENIZER))

    return together(context.stop, read)


_TEXTS, _BOUNDS, _TOKENIZER = "cot_texts.jsonl", "style_bounds.json", "tokenizer"


def _prepare(context: FoldRun, folder: Path) -> None:
    """Writes the fold's texts, bounds and tokenizer, unless they lie there, corrected perhaps."""
    run, fold, path = context.run, context.fold, folder / _TEXTS
    if path.exists():
        return
    wanted = [u for u in [*fold.train, *fold.dev] if u.label is not None]
    if run.data.cot_texts:
        given = {one.id: one for one in read_cot_texts(run.data.cot_texts)}
        _check_labels(run.data.cot_texts, given, wanted, context.labels)
        texts, bounds = [given[u.id] for u in wanted if u.id in given], StyleBounds()
    else:
        texts, bounds = _made_texts(context, wanted)
    directory = tokenizer_directory(run)
    if directory is not None:
        tokenizer = load_tokenizer(directory)
    else:
        assert run.c2ser is not None
        heard = {u.id for u in fold.train}
        tokenizer = train_tokenizer(
            _training_texts(run, [one for one in texts if one.id in heard]),
            vocabulary=run.c2ser.llm.vocabulary,
        )
    (folder / _TOKENIZER).mkdir(parents=True, exist_ok=True)
    for name, data in tokenizer.files().items():
        (folder / _TOKENIZER / name).write_bytes(data)
    bounds.save(folder / _BOUNDS)
    write_cot_texts(path, texts)  # last: what lies there is complete


def _check_labels(
    file: str, given: Mapping[str, CotText], rows: Sequence[Utterance], labels: Sequence[str]
) -> None:
    """Raises `UserError` for given answers that name another label than the list of utterances.

    The labels of `rows` are among the classes `labels`.
    """
    for row in rows:
        one = given.get(row.id)
        if one is None:
            continue
        place = class_index(one.label, labels, corpus=row.corpus)
        if place is None or labels[place] != row.label:
            raise UserError(
                f"{file}: the answers of {row.id!r} name {one.label!r}, the list of utterances has "
                f"{row.label!r} (classes: {', '.join(labels)}); correct one of them"
            )


def _made_texts(context: FoldRun, utterances: list[Utterance]) -> tuple[list[CotText], StyleBounds]:
    """Texts from audio, transcript and label; style bounds of the training part alone."""
    source = source_of(context.source, utterances)

    def load(place: int) -> np.ndarray:
        try:
            return source.load(place)[0]
        except BadAudio as error:
            raise UserError(f"{error.reason}: {error.detail}") from error

    training = {u.id for u in context.fold.train}
    texts, bounds, left_out = cot_texts(
        source.utterances, load, training=training, labels=context.labels
    )
    for utterance, why in left_out:
        context.say(f"{context.fold.name}: no answers for {utterance.id}: {why}")
    return texts, bounds


def _training_texts(run: RunConfig, texts: list[CotText]) -> list[str]:
    """What a tokenizer of the run's own is trained on: answers and prompts."""
    languages = sorted({answer_language(one.language) for one in texts})
    asked = [
        text
        for name in ANSWERING
        if (stage := getattr(run, name)) is not None
        for found in prompts_of(stage.answers, stage.answers.modes, languages).values()
        for text in found.values()
    ]
    return [*(one.explicit for one in texts), *(one.implicit for one in texts), *asked]


def _earlier(run: RunConfig, name: str) -> Sequence[str]:
    """The run's stages before one, which leave models."""
    stages: list[str] = list(run.configured_stages())
    return stages[: stages.index(name)]


def _write(
    context: FoldRun, name: str, task: ChainOfThought, params: Params, data: CotData,
    answers: Answers,
) -> None:  # fmt: skip
    """Writes what a finished stage leaves: its model directory and its curves."""
    run, folder = context.run, context.workdir / name
    before = [Path(one) for one in initial_directories(run)]
    before += [context.workdir / stage / "model" for stage in _earlier(run, name)]
    write_model(
        folder / "model",
        ModelDescription(
            kind=C2SER,
            model=to_json(task.model.cfg),
            labels=context.labels,
            extra={
                "languages": data.languages,
                "prompts": prompts_of(data.answers, data.answers.modes, data.languages),
                "style_bounds": answers.bounds.to_json(),
                "temperature": 1.0,
                "eos": [answers.tokenizer.eos],
            },
            **origin_of(context, name, data, initial_directories(run)),
        ),
        leaves_of(params),
        trained_on=trained_on(data, [one for one in before if one.exists()]),
        tokenizer=answers.tokenizer.files(),
        replace=True,
    )
    curves_picture(folder / "metrics.jsonl", folder / "curves.png", title=f"{run.name}: {name}")
