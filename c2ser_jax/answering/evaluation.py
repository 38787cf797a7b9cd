"""Asks a model about labelled utterances in every way that a config names, and scores the answers.

What is answered is on the disk at once; the same call goes on where an earlier one stopped.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2ser_jax import inference
from c2ser_jax.answering.answer_log import AnswerLog, Row
from c2ser_jax.answering.answerers import Answerer, Clock, load_answerer
from c2ser_jax.answering.ask import Ask, Mode
from c2ser_jax.data.files import write_text
from c2ser_jax.data.labels import class_index
from c2ser_jax.data.manifest import Utterance, read_manifest
from c2ser_jax.data.sources import FileSource
from c2ser_jax.errors import UserError, some_of
from c2ser_jax.evaluate_config import EvaluateConfig
from c2ser_jax.evaluation.answers import (
    answer_metrics,
    compare_conditions,
    score_array,
    worst_errors,
)
from c2ser_jax.evaluation.calibration import calibrate, scaled_probabilities
from c2ser_jax.evaluation.html_report import html_report
from c2ser_jax.evaluation.plots import confusion_picture
from c2ser_jax.evaluation.report import group_table, percent, score_table
from c2ser_jax.evaluation.runner import Labelled, audio_checksums, check_leakage, match_labels
from c2ser_jax.extraction.clips import Clip, Failure
from c2ser_jax.overrides import to_json
from c2ser_jax.training.checkpoint import read_trained_on
from c2ser_jax.training.model_directory import read_description, title_of, write_extra

Say = Callable[[str], None]
DEVELOPMENT = "development"
"""What asking about the list that a temperature is fitted on is called."""


@dataclass(frozen=True)
class Condition:
    """One way to ask about all utterances, or about those that stability is measured on."""

    name: str
    ask: Ask
    whole: bool = True
    alone: bool = False


@dataclass(frozen=True)
class Questions:
    """Utterances with the class that each one's label means."""

    utterances: list[Utterance]
    targets: list[str]
    labelled: Labelled

    @functools.cached_property
    def checksums(self) -> list[str | None]:
        """SHA-256 of every utterance's audio; None where it cannot be read."""
        return audio_checksums(FileSource(self.utterances))

    def sample(self, items: int) -> "Questions":
        """At most `items` of them (0: all), evenly spread over the list."""
        count = len(self.utterances)
        if not items or items >= count:
            return self
        places = [i * count // items for i in range(items)]
        return Questions(
            [self.utterances[i] for i in places], [self.targets[i] for i in places], self.labelled
        )


class Evaluation:
    """A model, a list, a config, and what was answered so far."""

    def __init__(
        self,
        cfg: EvaluateConfig,
        checkpoint: Path,
        output: Path,
        *,
        development: str | None = None,
        dtype: str | None = None,
        batch_seconds: float | None = None,
        say: Say = print,
    ):
        """Loads the model, reads the lists and opens `output`, where an earlier run may have begun.

        `development` is a list that a temperature is fitted on.

        Raises:
          UserError: any of them cannot be used, or the model was trained on the utterances.
        """
        if not cfg.data.manifest:
            raise UserError("which utterances? give --data.manifest LIST")
        self.cfg, self.checkpoint, self.output, self.say = cfg, checkpoint, output, say
        self.answerer: Answerer = load_answerer(
            checkpoint, cfg.labels, dtype=dtype, batch_seconds=batch_seconds
        )
        self.modes: list[Mode] = [mode for mode in cfg.modes if mode in self.answerer.modes]
        if not self.modes:
            raise UserError(
                f"{checkpoint} writes nothing: let modes name {', '.join(self.answerer.modes)}"
            )
        if left := [mode for mode in cfg.modes if mode not in self.modes]:
            say(f"left out: {', '.join(left)}, since this model writes nothing")
        self.labels = self.answerer.labels
        self.own_labels = read_description(checkpoint).labels or self.labels
        self.questions = self._read(cfg.data.manifest, cfg.data.root)
        self.development = None
        if development is not None:
            self.development = self._read(development, cfg.data.root)
        self.leakage = "not checked: data.allow_leakage"
        if not cfg.data.allow_leakage:
            self.leakage = self._check_leakage(read_trained_on(checkpoint), development)
        settings = {
            "model": inference.fingerprint(checkpoint),
            "config": to_json(cfg),
            "utterances": _digest(self.questions.utterances),
            "dtype": dtype,
        }
        self.log = AnswerLog(output, settings)

    def __enter__(self) -> "Evaluation":
        return self

    def __exit__(self, *exception: object) -> None:
        self.log.close()

    def run(self, *, write_temperature: bool = False) -> dict[str, Any]:
        """Asks what was not answered yet; returns everything of metrics.json.

        `write_temperature` puts the fitted temperature into the model directory.

        Raises:
          UserError: nothing could be heard, or there is no temperature to write.
        """
        temperature, fitted = self.answerer.temperature, None
        if self.development is not None:
            fitted = self._calibrate(self.development)
            temperature = fitted["temperature"]
            if write_temperature and not fitted["fitted"]:
                raise UserError(f"{_unfitted(fitted)}; give more or harder ones")
        for condition in self.conditions():
            questions = self.questions
            if not condition.whole:
                questions = questions.sample(self.cfg.stability.items)
            self._ask(condition, questions)
        summary = self.summary(temperature)
        if fitted is not None:
            summary["calibration"] = {**fitted, **self._tested(fitted)}
            if write_temperature:
                write_extra(self.checkpoint, temperature=temperature)
                self.say(f"written: temperature {temperature:.4f} into {self.checkpoint}")
        return summary

    def conditions(self) -> list[Condition]:
        """What is asked, in order."""
        cfg, modes = self.cfg, self.modes
        found = [Condition(mode, cfg.ask(mode)) for mode in modes]
        written: list[Mode] = [mode for mode in modes if mode != "labels"]
        if cfg.constrained:
            found += [
                Condition(f"{mode}, constrained", cfg.ask(mode, constrained=True), whole=False)
                for mode in written
            ]
        first, stable = modes[0], cfg.stability
        for wording in range(1, min(stable.wordings, self.answerer.wordings)):
            ask = cfg.ask(first, prompt=wording)
            found.append(Condition(f"{first}, wording {wording + 1}", ask, whole=False))
        if "implicit" in written:
            for seed in range(stable.seeds):
                ask = cfg.ask("implicit", decoding="sample", seed=cfg.seed + seed)
                found.append(Condition(f"implicit, seed {cfg.seed + seed}", ask, whole=False))
        if stable.alone:
            found.append(Condition(f"{first}, alone", cfg.ask(first), whole=False, alone=True))
        return found

    def summary(self, temperature: float) -> dict[str, Any]:
        """Scores of what is answered, at a temperature."""
        modes = self.modes
        options: dict[str, Any] = dict(resamples=self.cfg.resamples, seed=self.cfg.seed)
        part = self.questions.sample(self.cfg.stability.items) is not self.questions
        scored = {}
        for name in [*modes, *(f"{mode}, constrained" for mode in modes)]:
            if rows := self.log.rows(name):
                scored[name] = answer_metrics(rows, self.labels, temperature=temperature, **options)
                scored[name]["part"] = name not in modes and part
        bad = self.log.failures([condition.name for condition in self.conditions()])
        if modes[0] not in scored:
            why = f"; the first one: {bad[0]['error']}" if bad else ""
            raise UserError(f"none of the {len(bad)} utterances could be heard{why}")
        return {
            "name": self.cfg.name,
            "model": str(self.checkpoint),
            "mode": modes[0],
            **{k: scored[modes[0]][k] for k in ("wa", "ua", "wf1", "macro_f1", "num")},
            "conditions": scored,
            "stability": self._stability(modes, options),
            "seconds_per_clip": self._seconds_per_clip(),
            "classes": self.labels,
            "bad": bad,
            "unlabelled": len(self.questions.labelled.unlabelled),
            "unknown_labels": self.questions.labelled.unknown,
            "leakage": self.leakage,
            "settings": to_json(self.cfg),
        }

    def write(self, summary: dict[str, Any]) -> Path:
        """Writes predictions.jsonl whole, metrics.json, confusion.png and report.html, its path."""
        temperature = summary["conditions"][self.modes[0]]["calibration"]["temperature"]
        rows = [with_probabilities(row, self.labels, temperature) for row in self.log.all()]
        self.log.finish(rows)
        first = [r for r in rows if r["condition"] == self.modes[0] and "error" not in r]
        reasons = {row["id"]: row for row in self.log.rows("explicit")}
        shown = []
        for row in worst_errors(first, self.labels, self.cfg.worst):
            reason = reasons.get(row["id"], {})
            told = {k: reason[k] for k in ("transcript", "rationale", "text") if k in reason}
            shown.append({**told, **row})
        title = f"{self.cfg.name}: {title_of(self.checkpoint)}"
        scored = summary["conditions"][self.modes[0]]
        confusion_picture(
            scored["confusion"], scored["classes"], self.output / "confusion.png", title=title
        )
        text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        write_text(self.output / "metrics.json", text)
        page = html_report(
            summary, title=title, notes=self.notes(summary), errors=shown,
            most_audio_bytes=int(self.cfg.audio_megabytes * 1e6),
        )  # fmt: skip
        return write_text(self.output / "report.html", page)

    def notes(self, summary: dict[str, Any]) -> list[str]:
        """What a reader of the scores must know, a sentence each."""
        notes = [f"{summary['num']} utterances scored, in mode {summary['mode']} first"]
        notes.append(f"leakage {self.leakage}")
        if new := [label for label in self.labels if class_index(label, self.own_labels) is None]:
            notes.append(
                f"the model's own labels are {some_of(self.own_labels, 20)}: it may never have "
                f"learned {some_of(new)}"
            )
        if summary["bad"]:
            notes.append(f"{len(summary['bad'])} could not be heard and are not scored")
        if summary["unlabelled"]:
            notes.append(f"{summary['unlabelled']} have no label and are not scored")
        for label, number in summary["unknown_labels"].items():
            notes.append(f"{number} labelled {label!r} are not scored: no label of the set")
        if fitted := summary.get("calibration"):
            if fitted["bad"]:
                first = fitted["bad"][0]["id"]
                notes.append(
                    f"{len(fitted['bad'])} development utterances, such as {first!r}, could not be "
                    "heard and are not calibrated on"
                )
            if not fitted["fitted"]:
                notes.append(f"{_unfitted(fitted)}; the temperature before is kept")
        return notes

    def table(self, summary: dict[str, Any]) -> str:
        """The scores of every condition as text, then how often answers name a label and agree."""
        first = summary["conditions"][self.modes[0]]
        parts = [score_table(first, first["intervals_95"], first["constant_floor"])]
        groups = {name: one for name, one in first["by_language"].items()}
        if len(groups) > 1:
            parts.append(group_table("language", groups))
        parts.append(group_table("condition", summary["conditions"]))
        lines = []
        for name, one in summary["conditions"].items():
            if "answers" in one:
                found = one["answers"]
                lines.append(
                    f"{name}: {percent(found['parse_rate']['value'])} % name an emotion, "
                    f"{percent(found['hallucination_rate']['value'])} % one outside the set"
                )
        for name, one in summary["stability"].items():
            agreeing = percent(one["agreement"]["value"])
            lines.append(f"{name.replace('_', ' ')}: {agreeing} % agree ({one['num']} items)")
        if fitted := summary.get("calibration"):
            lines.append(
                f"temperature {fitted['temperature']:.3f}: ECE on development data "
                f"{percent(fitted['ece_before'])} → {percent(fitted['ece_after'])} %, on these "
                f"{percent(fitted['test_ece_before'])} → {percent(fitted['test_ece_after'])} %"
            )
        for name, value in summary["seconds_per_clip"].items():
            lines.append(f"{name}: {value:.3f} s per clip")
        return "\n\n".join([*parts, "\n".join(lines)])

    def _seconds_per_clip(self) -> dict[str, float]:
        """By condition; other development lists than the one given are left out."""
        names = {condition.name: condition.name for condition in self.conditions()}
        if self.development is not None:
            names[_development_name(self.development)] = DEVELOPMENT
        return {
            names[name]: time["seconds"] / time["clips"]
            for name, time in self.log.times.items()
            if name in names
        }

    def _stability(self, modes: Sequence[Mode], options: dict[str, Any]) -> dict[str, Any]:
        names = [condition.name for condition in self.conditions()]
        first = modes[0]
        sets = {
            "wordings": [first, *(n for n in names if n.startswith(f"{first}, wording"))],
            "seeds": [n for n in names if n.startswith("implicit, seed")],
            "batch_sizes": [first, *(n for n in names if n == f"{first}, alone")],
            "explicit_against_implicit": [n for n in ("explicit", "implicit") if n in modes],
            "modes": list(modes),
        }
        found = {}
        for what, conditions in sets.items():
            tables = {name: self.log.rows(name) for name in conditions}
            compared = compare_conditions(tables, **options)
            if compared is not None:
                found[what] = compared
        return found

    def _read(self, manifest: str, root: str) -> Questions:
        """Labelled utterances of a list."""
        utterances = read_manifest(manifest, root=root or None)
        labelled = match_labels(
            utterances, self.labels, skip_unknown=self.cfg.data.skip_unknown_labels,
            option="--data.skip_unknown_labels True",
        )  # fmt: skip
        places = list(labelled.targets)
        return Questions(
            [utterances[i] for i in places], [labelled.targets[i] for i in places], labelled
        )

    def _check_leakage(self, trained_on: list[Row] | None, development: str | None) -> str:
        """What is known of scored utterances that the model was trained on.

        Raises:
          UserError: it was trained on some, or on some of the `development` list; or an utterance
            is both scored and calibrated on.
        """

        def check(questions: Questions) -> str:
            return check_leakage(
                trained_on, questions.utterances, lambda: questions.checksums,
                option="--data.allow_leakage True",
            )  # fmt: skip

        if self.development is not None:
            _check_apart(self.questions, self.development)
            try:
                check(self.development)
            except UserError as error:
                raise UserError(f"{development}: {error}") from None
        return check(self.questions)

    def _ask(self, condition: Condition, questions: Questions) -> None:
        """Asks about the utterances that the condition has no answer for."""
        todo = [
            (utterance, target)
            for utterance, target in zip(questions.utterances, questions.targets, strict=True)
            if not self.log.answered(condition.name, utterance.id)
        ]
        if not todo:
            return
        self.say(f"asking: {condition.name}, {len(todo)} utterances")
        clips = [Clip.of(utterance) for utterance, _ in todo]
        clock, clips_done = Clock(self.answerer), 0
        try:
            for index, found in self.answerer.ask(clips, condition.ask, alone=condition.alone):
                utterance, target = todo[index]
                self.log.add(condition.name, _row(utterance, target, found))
                clips_done += 1
        finally:
            self.log.add_time(condition.name, clips_done, *clock.read())

    def _calibrate(self, development: Questions) -> dict[str, Any]:
        """The temperature of the first mode's scores on the development list."""
        mode = self.modes[0]
        name = _development_name(development)
        self._ask(Condition(name, self.cfg.ask(mode)), development)
        rows = self.log.rows(name)
        if not rows:
            raise UserError("none of the development utterances could be heard; see predictions")
        before = self.answerer.temperature
        scores = score_array(rows, self.labels) / before
        found = calibrate(scores, [self.labels.index(row["label"]) for row in rows])
        return {
            "mode": mode,
            "temperature_before": before,
            **found,
            "temperature": before * found["temperature"],
            "bad": self.log.failures([name]),
        }

    def _tested(self, fitted: dict[str, Any]) -> dict[str, Any]:
        """What the temperature changes on the utterances that are scored."""
        rows = self.log.rows(fitted["mode"])
        found, errors = [], {}
        for when in ("temperature_before", "temperature"):
            done = [with_probabilities(row, self.labels, fitted[when]) for row in rows]
            found.append([max(r["probabilities"], key=r["probabilities"].get) for r in done])
            metrics = answer_metrics(rows, self.labels, temperature=fitted[when], resamples=1)
            errors[when] = metrics["calibration"]
        return {
            "test_ece_before": errors["temperature_before"]["error"],
            "test_ece_after": errors["temperature"]["error"],
            "test_nll_before": errors["temperature_before"]["negative_log_likelihood"],
            "test_nll_after": errors["temperature"]["negative_log_likelihood"],
            "argmax_unchanged": found[0] == found[1],
        }


def _check_apart(tested: Questions, development: Questions) -> None:
    """Raises UserError where an id, or the very audio, is both scored and calibrated on."""
    ids = {u.id for u in tested.utterances}
    shared = [u.id for u in development.utterances if u.id in ids]
    if not shared:
        heard = set(tested.checksums) - {None}
        pairs = zip(development.utterances, development.checksums, strict=True)
        shared = [u.id for u, sha256 in pairs if sha256 in heard]
    if shared:
        raise UserError(
            f"{len(shared)} utterances, such as {shared[0]!r}, are both scored and calibrated "
            "on, which would flatter the calibration; give another development list"
        )


def _unfitted(fitted: dict[str, Any]) -> str:
    """That a calibration found no temperature, and why."""
    wrong = f"{fitted['wrong']} are" if fitted["wrong"] else "none is"
    return f"no temperature fits {fitted['num']} development answers of which {wrong} wrong"


def with_probabilities(row: Row, labels: Sequence[str], temperature: float) -> Row:
    """A row with the probabilities of its labels at a temperature; a failure as it is."""
    if "error" in row:
        return row
    values = scaled_probabilities(score_array([row], labels), temperature)[0]
    return {**row, "probabilities": dict(zip(labels, values.tolist(), strict=True))}


def _row(utterance: Utterance, target: str, found: Row | Failure) -> Row:
    row: Row = {"id": utterance.id, "path": utterance.path}
    if isinstance(found, Failure):
        return {**row, "reason": found.reason, "error": found.message}
    known = {name: getattr(utterance, name) for name in ("start", "end", "corpus", "speaker")}
    said = {**known, "channel": utterance.channel, "reference": utterance.text}
    return {
        **row,
        "language": utterance.language,
        "label": target,
        "correct": target == found["predicted"],
        **found,
        **{k: value for k, value in said.items() if value is not None},
    }


def _development_name(development: Questions) -> str:
    """The condition of a development list: with a digest, so that another list has its own."""
    return f"{DEVELOPMENT} {_digest(development.utterances)}"


def _digest(utterances: Sequence[Utterance]) -> str:
    """A short hash of which utterances are asked about, and what is known of them."""
    known = [
        [u.id, u.path, u.start, u.end, u.channel, u.label, u.language, u.text] for u in utterances
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
