"""Executes a run: every fold's stages, then one report over all folds per scored stage."""

import json
from collections.abc import Callable
from pathlib import Path

from c2ser_jax import bad_files
from c2ser_jax.config import ANSWERING, STAGES, RunConfig
from c2ser_jax.corpus import corpus_labels, make_folds, name_classes, read_corpus
from c2ser_jax.data.labels import canonical_label
from c2ser_jax.data.scanning import listing
from c2ser_jax.data.splits import Fold
from c2ser_jax.errors import UserError, some_of
from c2ser_jax.evaluation.probe_result import FoldResult, ProbeResult, gather_folds
from c2ser_jax.evaluation.report import write_text
from c2ser_jax.fold_run import FoldRun, alone, together
from c2ser_jax.initial_parts import check_initial_parts
from c2ser_jax.overrides import to_json
from c2ser_jax.parallel.distributed import is_main_process
from c2ser_jax.parallel.mesh import make_mesh
from c2ser_jax.stages import run_fold
from c2ser_jax.training.preemption import Stopped, StopSignal
from c2ser_jax.training.resume import differences

Say = Callable[[str], None]


def execute(
    run: RunConfig, workdir: Path, *, progress: bool | None = None, say: Say = print
) -> dict[str, ProbeResult] | None:
    """Runs all folds; returns the scores by stage, or None when a signal stopped the run.

    Without test data (`data.protocol all`) nothing is scored.

    Writes `config.json`, `bad_files.jsonl` when there are such, per fold what `stages` says
    (without a folder level when there is one fold), and per scored stage `metrics.json`,
    `predictions.jsonl`, `confusion.png` and `report.md` in a folder of its name.

    Raises:
      UserError: the config does not fit the corpus, or the folder holds another run.
    """
    if not run.configured_stages():
        raise UserError(
            f"the run {run.name!r} configures no stage; give one of {', '.join(STAGES)}"
        )
    if not is_main_process():
        say = _say_nothing
    with StopSignal() as stop:
        try:
            return _execute(run, workdir, progress, say, stop)
        except Stopped:
            say("stopped by a signal; everything is saved and the same command goes on")
            return None


def _execute(
    run: RunConfig, workdir: Path, progress: bool | None, say: Say, stop: StopSignal
) -> dict[str, ProbeResult]:
    mesh = make_mesh(run.mesh)
    if {*ANSWERING} & {*run.configured_stages()}:
        alone(stop, lambda: check_initial_parts(run))
    source, bad = together(stop, lambda: read_corpus(run.data))
    labels = corpus_labels(run, source)
    folds = make_folds(run.data, source, run.seed, bad)
    if not run.uses_development:
        folds = [fold.without_dev() for fold in folds]
    folds = [name_classes(run, fold, labels) for fold in folds]
    _check_test_data(run, folds)
    _record(run, workdir)
    if run.needs_labels and not run.data.labels:
        say(_classes(labels))
    if bad:
        say(f"left out {len(bad)} files (bad_files.jsonl):\n{listing(bad)}")
        if is_main_process():
            bad_files.add_bad_files(workdir, bad)
    scores: dict[str, list[FoldResult]] = {}
    lost: list[str] = []
    for fold in folds:
        folder = workdir / fold.name if len(folds) > 1 else workdir
        found = run_fold(
            FoldRun(run, fold, source, labels, folder, workdir, mesh, progress, say, lost, stop)
        )
        for stage, result in found.items():
            scores.setdefault(stage, []).append(result)
            say(
                f"{fold.name} {stage}: UA {result.metrics['ua']:.1%}, WA {result.metrics['wa']:.1%}"
            )
    return alone(stop, lambda: _report_all(run, scores, labels, lost, workdir, say)) or {}


def _report_all(
    run: RunConfig, scores: dict[str, list[FoldResult]], labels: list[str], lost: list[str],
    workdir: Path, say: Say,
) -> dict[str, ProbeResult]:  # fmt: skip
    results = {stage: _report(run, stage, found, labels, lost, workdir, say)
               for stage, found in scores.items()}  # fmt: skip
    models = sorted([*workdir.glob("*/model"), *workdir.glob("*/*/model")])
    if not results and models:
        say(f"nothing was scored; the model is in {', '.join(map(str, models))}")
    say(f"everything is in {workdir}")
    return results


def _check_test_data(run: RunConfig, folds: list[Fold]) -> None:
    if run.data.protocol == "all" or not {"classify", "probe"} & set(run.configured_stages()):
        return
    for fold in folds:
        if not any(u.label for u in fold.test):
            raise UserError(
                f"{fold.name} has no test utterance with a label, so nothing could be scored; hold "
                "out labelled ones, or train a classifier on everything with --data.protocol all"
            )


def _report(
    run: RunConfig, stage: str, found: list[FoldResult], labels: list[str], lost: list[str],
    workdir: Path, say: Say,
) -> ProbeResult:  # fmt: skip
    settings = to_json(getattr(run, stage))
    result = gather_folds(found, labels, sorted(set(lost)), {**settings, "seed": run.seed})
    result.write(workdir / stage, title=f"{run.name}: {stage}")
    say(f"\n{stage} on held-out test data\n\n{result.table()}\n")
    if stage in ANSWERING:
        from c2ser_jax.answer_scores import tell_answers

        say(f"{tell_answers(run, found, workdir / stage)}\n")
    return result


def _classes(labels: list[str]) -> str:
    """What the corpus gives for classes: a misspelt label would be one of them."""
    unknown = [label for label in labels if canonical_label(label) is None]
    told = f"classes of the corpus: {some_of(labels, 20)}"
    if not unknown:
        return told
    return f"{told}; no emotion known here: {some_of(unknown)} (--data.labels names those you want)"


def _say_nothing(line: str) -> None:
    del line


def _record(run: RunConfig, workdir: Path) -> None:
    """Stores the resolved config, or refuses a folder in which another run has begun."""
    path, resolved = workdir / "config.json", json.loads(json.dumps(to_json(run)))
    begun = path.exists() and {one.name for one in workdir.iterdir()} - {path.name, bad_files.NAME}
    if begun and (different := differences(json.loads(path.read_text("utf-8")), resolved)):
        raise UserError(
            f"{workdir} holds another run ({different}); "
            "give another --workdir, or the settings of that run to go on with it"
        )
    if is_main_process():
        write_text(path, json.dumps(resolved, indent=1, ensure_ascii=False) + "\n")
