"""Scores on a fold's test utterances: of a classifier, and of a probe on frozen features."""

from pathlib import Path
from typing import Any

from c2ser_jax import inference
from c2ser_jax.config import ANSWERING
from c2ser_jax.corpus import source_of
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.splits import Fold
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import classification_metrics
from c2ser_jax.evaluation.probe_result import FoldResult
from c2ser_jax.evaluation.protocols import run_probe
from c2ser_jax.evaluation.runner import audio_checksums, check_leakage
from c2ser_jax.extraction.clips import Failure, clips_of
from c2ser_jax.extraction.features import extract_features
from c2ser_jax.extraction.store import ERRORS, FeatureStore, read_rows
from c2ser_jax.fold_run import FoldRun
from c2ser_jax.training.checkpoint import read_trained_on


def check_initial(context: FoldRun) -> None:
    """Compares the fold's test data with what the run's `initial` model was trained on.

    Raises:
      UserError: it was trained on some of them, and `data.allow_leakage` is False.
    """
    run, fold = context.run, context.fold
    stages = set(run.configured_stages())
    scored = {"classify", "probe"} & stages or (run.score_answers and stages & {*ANSWERING})
    if not run.initial or not scored or not fold.test or run.data.allow_leakage:
        return
    test = source_of(context.source, fold.test)
    try:
        found = check_leakage(
            read_trained_on(run.initial), test.utterances, lambda: audio_checksums(test),
            option="--data.allow_leakage True",
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"{fold.name}: {error}") from None
    context.say(f"{fold.name}: leakage {found}")


def score_model(context: FoldRun, directory: Path) -> FoldResult:
    """Scores a model directory on the fold's test utterances."""
    model = inference.load(directory)
    fold, rows = _labelled(context.fold), []
    for place, result in model.stream(clips_of(context.source, fold.test)):
        utterance = fold.test[place]
        if isinstance(result, Failure):
            context.lose(utterance, result.message)
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
    return fold_result(context, sorted(rows, key=lambda row: row["id"]))


def fold_result(context: FoldRun, rows: list[dict[str, Any]]) -> FoldResult:
    """A fold's scores from rows with id, fold, label, predicted, probabilities and speaker."""
    fold = _labelled(context.fold)
    heard = {u.speaker for u in [*fold.train, *fold.dev]} - {None}
    voices = {u.speaker for u in fold.test} - {None}
    return FoldResult(
        name=fold.name,
        sizes={"train": len(fold.train), "dev": len(fold.dev), "test": len(fold.test)},
        chosen={},
        grid=[],
        metrics=classification_metrics(
            [row["label"] for row in rows], [row["predicted"] for row in rows], context.labels
        ),
        rows=rows,
        shared_speakers=len(heard & voices),
        speakers=len(voices),
    )


def score_probe(context: FoldRun) -> FoldResult:
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
        context.lose(named[row["id"]], row["message"])
    return folder


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
