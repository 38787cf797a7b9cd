"""Scores a model on labelled audio: `python -m c2ser_jax.evaluate --help`."""

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2ser_jax.errors import UserError, run_command

if TYPE_CHECKING:
    from c2ser_jax.data.sources import Source
    from c2ser_jax.evaluate_config import EvaluateConfig
    from c2ser_jax.evaluation.runner import Scores


@dataclass(frozen=True)
class Job:
    """A model directory and the data to score it on."""

    model: Path
    source: "Source"
    fold: str | None = None
    bad: list[dict[str, str]] = field(default_factory=list)
    """Rows that could not be read when the corpus was scanned: id, path, reason, detail."""


OF_CONFIG = {
    "manifest": "give --data.manifest LIST instead",
    "root": "give --data.root DIR instead",
    "skip_unknown_labels": "give --data.skip_unknown_labels True instead",
    "allow_leakage": "give --data.allow_leakage True instead",
    "workdir": "leave it out, since --output says where everything is written",
}
"""Options that the config of an evaluation has in its own words."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m c2ser_jax.evaluate",
        usage="%(prog)s --checkpoint DIR --manifest FILE --output DIR [options]\n"
        "       %(prog)s --config FILE [--workdir DIR] [--output DIR] [--a.b VALUE …] [options]\n"
        "       %(prog)s --config FILE --checkpoint DIR --output DIR [--a.b VALUE …] [options]",
        description="Writes metrics.json, predictions.jsonl, confusion.png and report.md. With a "
        "config of a run: scores the classifiers of that run, each fold's on the fold's test data. "
        "With a config of an evaluation, such as configs/eval/emo_emilia.py: asks the model in "
        "every way, goes on where it was stopped, and writes report.html instead of report.md.",
        epilog="Exit code 0: all scored; 1: some files were bad, see metrics.json; 2: wrong usage, "
        "or test data that the model was trained on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="model directory with an emotion head")
    add("--manifest", nargs="+", metavar="FILE", help="labelled utterances")
    add("--root", metavar="DIR", help="where the manifest's relative paths start")
    add("--config", metavar="FILE", help="config file of a finished run, or of an evaluation")
    add("--workdir", metavar="DIR", help="that run's folder (default runs/NAME)")
    add("--output", metavar="DIR", help="where to write (config: WORKDIR/evaluation)")
    add(
        "--skip-unknown-labels", action="store_true",
        help="leave out utterances whose label means none of the model's classes",
    )  # fmt: skip
    add("--allow-leakage", action="store_true", help="score even data that was trained on")
    add("--batch-seconds", type=float, metavar="S", help="audio per batch (CPU 32, GPU 240)")
    add("--dtype", choices=("float32", "bfloat16"), help="what to compute in")
    add("--calibrate", metavar="FILE", help="evaluation: list of development data that a "
        "temperature is fitted on")  # fmt: skip
    add("--write-temperature", action="store_true",
        help="evaluation: put the fitted temperature into the model directory")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses, predicts, scores; returns the exit code."""
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and not arguments.config:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    config: Any = None
    if arguments.config:
        from c2ser_jax.config import import_config
        from c2ser_jax.evaluate_config import EvaluateConfig

        config = import_config(arguments.config)
        if isinstance(config, EvaluateConfig):
            return evaluate_answers(config, arguments, overrides)
    if arguments.calibrate or arguments.write_temperature:
        raise UserError("--calibrate and --write-temperature need --config of an evaluation")
    if bool(arguments.config) == bool(arguments.checkpoint or arguments.manifest):
        raise UserError(
            "give either --config, or --checkpoint with --manifest and --output; only the config "
            "of an evaluation takes a --checkpoint"
        )
    if arguments.config:
        jobs, output, title = run_jobs(config, arguments, overrides)
    else:
        missing = [n for n in ("checkpoint", "manifest", "output") if not getattr(arguments, n)]
        if missing:
            raise UserError(f"--{missing[0]} is missing; give --checkpoint, --manifest, --output")
        jobs, output, title = manifest_job(arguments)

    from c2ser_jax.data.files import check_writable
    from c2ser_jax.evaluation.runner import Scores

    check_writable(output)
    scores: Scores | None = None
    for job in jobs:
        scores = score_job(job, arguments, scores)
    assert scores is not None
    table = scores.write(output, title)
    print(table, *(f"- {note}" for note in scores.notes()), f"written: {output}", sep="\n")
    return 1 if scores.bad else 0


def evaluate_answers(
    config: "EvaluateConfig", arguments: argparse.Namespace, overrides: list[str]
) -> int:
    """Asks a model as the config of an evaluation says; returns the exit code.

    Raises:
      UserError: what arguments and config name cannot be used.
    """
    from c2ser_jax.data.files import check_writable
    from c2ser_jax.overrides import apply_overrides

    if not arguments.checkpoint:
        raise UserError(
            f"{arguments.config} is the config of an evaluation, which doesn't name the model "
            "that is asked; give --checkpoint DIR"
        )
    for name, advice in OF_CONFIG.items():
        if getattr(arguments, name):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} has no effect with the config of an evaluation; {advice}")
    config = apply_overrides(config, overrides)
    if not arguments.output:
        raise UserError("--output is missing; give a folder for what is written")
    if arguments.write_temperature and not arguments.calibrate:
        raise UserError("--write-temperature needs --calibrate LIST, which it is fitted on")
    check_writable(arguments.output)
    from c2ser_jax.answering.evaluation import Evaluation

    with Evaluation(
        config, Path(arguments.checkpoint), Path(arguments.output),
        development=arguments.calibrate, dtype=arguments.dtype,
        batch_seconds=arguments.batch_seconds,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    ) as evaluation:  # fmt: skip
        summary = evaluation.run(write_temperature=arguments.write_temperature)
        report = evaluation.write(summary)
    notes = [f"- {note}" for note in evaluation.notes(summary)]
    print(evaluation.table(summary), *notes, f"written: {report}", sep="\n")
    return 1 if summary["bad"] else 0


def manifest_job(arguments: argparse.Namespace) -> tuple[list[Job], Path, str]:
    """(the one job, output folder, title) of --checkpoint and --manifest."""
    from c2ser_jax.data.manifest import read_manifest
    from c2ser_jax.data.sources import FileSource
    from c2ser_jax.training.model_directory import title_of

    source = FileSource(read_manifest(arguments.manifest, root=arguments.root))
    model = Path(arguments.checkpoint)
    names = ", ".join(Path(name).name for name in arguments.manifest)
    return [Job(model, source)], Path(arguments.output), f"{title_of(model)} on {names}"


def run_jobs(
    config: Any, arguments: argparse.Namespace, overrides: list[str]
) -> tuple[list[Job], Path, str]:
    """(a job per fold, output folder, title) of a run that was trained before.

    Raises:
      UserError: `config` is no run's, the run has no classifier, or was not finished.
    """
    from c2ser_jax.config import RunConfig
    from c2ser_jax.corpus import make_folds, read_corpus, source_of
    from c2ser_jax.overrides import apply_overrides

    if not isinstance(config, RunConfig):
        raise UserError(
            f"get_config() of {arguments.config} returned {type(config).__name__}, neither a "
            "RunConfig nor an EvaluateConfig"
        )
    run = apply_overrides(config, overrides)
    workdir = Path(arguments.workdir) if arguments.workdir else Path("runs") / run.name
    if "classify" not in run.configured_stages():
        raise UserError(
            f"the run {run.name!r} trains no classifier to evaluate; the scores of its probe, if "
            f"it has one, are in {workdir / 'probe' / 'metrics.json'}"
        )
    if run.data.protocol == "all":
        raise UserError(
            f"the run {run.name!r} trains on all its data (data.protocol all) and holds none to "
            "evaluate on; give --checkpoint with a --manifest of other data"
        )
    corpus, bad = read_corpus(run.data)
    folds = make_folds(run.data, corpus, run.seed, bad)
    jobs = []
    for fold in folds:
        folder = workdir / fold.name
        if len(folds) == 1 and not folder.is_dir():
            folder = workdir  # a run of a single fold has no folder for it
        model = folder / "classify" / "model"
        if not model.is_dir():
            raise UserError(
                f"{model} is not there: train this run first with python -m c2ser_jax.train "
                f"--config {arguments.config} --workdir {workdir}"
            )
        jobs.append(Job(model, source_of(corpus, fold.test), fold.name))
    jobs[0] = dataclasses.replace(jobs[0], bad=[dataclasses.asdict(file) for file in bad])
    output = Path(arguments.output) if arguments.output else workdir / "evaluation"
    return jobs, output, f"{run.name} on its test data"


def score_job(job: Job, arguments: argparse.Namespace, scores: "Scores | None") -> "Scores":
    """Adds one model's answers to `scores`, or to new ones.

    Raises:
      UserError: the model has no head, a label fits no class, or the data was trained on.
    """
    from c2ser_jax.evaluation.runner import Scores, audio_checksums, check_leakage, match_labels
    from c2ser_jax.extraction.clips import Failure, clips_of
    from c2ser_jax.inference import load
    from c2ser_jax.training.checkpoint import read_trained_on

    model = load(job.model, dtype=arguments.dtype, batch_seconds=arguments.batch_seconds)
    model.require_head()
    scores = scores or Scores(model.used_labels)
    labelled = match_labels(
        job.source.utterances, model.used_labels, skip_unknown=arguments.skip_unknown_labels
    )
    if arguments.allow_leakage:
        leakage = "not checked: --allow-leakage"
    else:
        leakage = check_leakage(
            read_trained_on(job.model), job.source.utterances, lambda: audio_checksums(job.source)
        )
    scores.leakage.append(f"{job.fold}: leakage {leakage}" if job.fold else f"leakage {leakage}")
    scores.count(labelled)
    scores.bad += [
        {
            **{k: row[k] for k in ("id", "path", "reason")},
            "message": f"{row['path']}: {row['detail']}",
        }
        for row in job.bad
    ]
    places = list(labelled.targets)
    utterances = [job.source.utterances[place] for place in places]
    for index, result in model.stream(clips_of(job.source, utterances)):
        utterance = utterances[index]
        if not isinstance(result, Failure):
            target = labelled.targets[places[index]]
            more = {"fold": job.fold} if job.fold else {}
            scores.add(utterance, target, result.label, result.probabilities, **more)
        else:
            scores.fail(utterance, result.reason, result.message)
    return scores


if __name__ == "__main__":
    run_command(main)
