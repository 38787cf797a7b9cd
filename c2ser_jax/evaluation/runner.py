"""Scores a model's answers on labelled utterances, and refuses data that it was trained on.

Scores are fractions; a row is one scored utterance.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.data.audio import BadAudio
from c2ser_jax.data.labels import map_labels
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import Source
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import (
    bootstrap_intervals,
    classification_metrics,
    constant_floor,
    expected_calibration_error,
    grouped,
)
from c2ser_jax.evaluation.report import class_table, group_table, score_table, write_report

GROUPS = ("language", "corpus", "speaker")


@dataclass(frozen=True)
class Labelled:
    """The part of a list that can be scored: class words of the model, by place in the list."""

    targets: dict[int, str]
    unlabelled: list[str]
    unknown: dict[str, int]
    """Labels that no class means, with how many utterances have them."""


def match_labels(
    utterances: Sequence[Utterance],
    classes: Sequence[str],
    *,
    skip_unknown: bool = False,
    option: str = "--skip-unknown-labels",
) -> Labelled:
    """Maps each utterance's own word for its emotion to the class that means it.

    Raises:
      UserError: nothing can be scored, or a label means no class and `skip_unknown`, whose name for
        users is `option`, is false.
    """
    found = map_labels(
        [u.label for u in utterances],
        classes,
        corpora=[u.corpus for u in utterances],
        ignore_unknown=skip_unknown,
        remedy=f"leave such rows out with {option}",
    )
    targets = {place: classes[index] for place, index in enumerate(found) if index >= 0}
    unknown: dict[str, int] = {}
    for utterance, index in zip(utterances, found, strict=True):
        if index < 0 and utterance.label is not None:
            unknown[utterance.label] = unknown.get(utterance.label, 0) + 1
    if not targets:
        raise UserError(
            f"none of the {len(utterances)} utterances has a label that the model knows "
            f"({', '.join(classes)}), so there is nothing to score"
        )
    return Labelled(targets, [u.id for u in utterances if u.label is None], unknown)


def audio_checksums(source: Source) -> list[str | None]:
    """SHA-256 of every utterance's audio; None where it cannot be read."""

    def checksum(place: int) -> str | None:
        try:
            return source.scan(place, allow_silent=True).sha256
        except BadAudio:
            return None  # scoring will report it

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(checksum, range(len(source.utterances))))


def check_leakage(
    trained_on: Iterable[Mapping[str, Any]] | None,
    utterances: Sequence[Utterance],
    checksums: Callable[[], Sequence[str | None]],
    *,
    option: str = "--allow-leakage",
) -> str:
    """Compares ids and audio checksums with what the model was trained on; returns what it found.

    `checksums` gives those of `utterances`, and is only asked where the model's are known; `option`
    is what users score such data with all the same.

    Raises:
      UserError: a test utterance has the id or the very audio of a training utterance.
    """
    if trained_on is None:
        return "unknown: the model directory does not list what it was trained on"
    rows = list(trained_on)
    ids = {row.get("id") for row in rows}
    hashes = {row["audio_sha256"]: row.get("id") for row in rows if row.get("audio_sha256")}
    shared = [
        f"the id {utterance.id!r} is among the model's training data"
        for utterance in utterances
        if utterance.id in ids
    ]
    if hashes and not shared:
        shared = [
            f"the audio of {utterance.id!r} is that of {hashes[sha256]!r}, which the model was "
            "trained on"
            for utterance, sha256 in zip(utterances, checksums(), strict=True)
            if sha256 in hashes
        ]
    if shared:
        raise UserError(
            f"{shared[0]}, so a score would mean nothing; leave such utterances out of the list, "
            f"or score them all the same with {option}"
        )
    unheard = sum(not row.get("audio_sha256") for row in rows)
    if not unheard:
        return f"none: {len(rows)} training utterances share no id and no audio with the test data"
    return (
        f"none by the ids of {len(rows)} training utterances, but the audio was compared with "
        f"{len(rows) - unheard} of them only: the checksums of the others are unknown"
    )


@dataclass
class Scores:
    """What was predicted so far, over one or several models with the same classes."""

    classes: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)
    unlabelled: int = 0
    unknown_labels: dict[str, int] = field(default_factory=dict)
    leakage: list[str] = field(default_factory=list)

    def add(
        self,
        utterance: Utterance,
        target: str,
        predicted: str,
        probabilities: Mapping[str, float],
        **more: Any,
    ) -> None:
        """Adds a scored utterance."""
        row = {
            "id": utterance.id,
            "path": utterance.path,
            "label": target,
            "predicted": predicted,
            "correct": target == predicted,
            "probabilities": dict(probabilities),
            "given_label": utterance.label,
            **{name: getattr(utterance, name) for name in GROUPS},
            **more,
        }
        self.rows.append(row)

    def fail(self, utterance: Utterance, reason: str, message: str) -> None:
        """Adds an utterance that could not be read, and so is not scored."""
        row = {"id": utterance.id, "path": utterance.path, "reason": reason, "message": message}
        self.bad.append(row)

    def count(self, labelled: Labelled) -> None:
        """Adds up what a list holds beside labelled utterances."""
        self.unlabelled += len(labelled.unlabelled)
        for label, number in labelled.unknown.items():
            self.unknown_labels[label] = self.unknown_labels.get(label, 0) + number

    def summary(self) -> dict[str, Any]:
        """Everything of metrics.json.

        Raises:
          UserError: nothing was scored.
        """
        if not self.rows:
            raise UserError(
                f"no utterance could be scored: all {len(self.bad)} are bad, the first one because "
                f"{self.bad[0]['message']}"
                if self.bad
                else "no utterance could be scored"
            )
        classes = self.classes
        targets = [row["label"] for row in self.rows]
        predictions = [row["predicted"] for row in self.rows]
        speakers = [row["speaker"] for row in self.rows]
        probabilities = np.array([[row["probabilities"][c] for c in classes] for row in self.rows])
        numbers = [classes.index(target) for target in targets]
        result = classification_metrics(targets, predictions, classes)
        result["intervals_95"] = bootstrap_intervals(targets, predictions, classes)
        if None not in speakers and len(set(speakers)) >= 5:
            result["speaker_intervals_95"] = bootstrap_intervals(
                targets, predictions, classes, groups=speakers
            )
        result["constant_floor"] = constant_floor(targets, classes)
        result["calibration_error"] = expected_calibration_error(probabilities, numbers)
        for name in GROUPS:
            if any(row[name] is not None for row in self.rows):
                result[f"by_{name}"] = grouped(self.rows, name, classes)
        result["bad"] = self.bad
        result["unlabelled"] = self.unlabelled
        result["unknown_labels"] = self.unknown_labels
        result["leakage"] = self.leakage
        return result

    def write(self, directory: Path, title: str) -> str:
        """Writes metrics.json, predictions.jsonl, confusion.png, report.md; returns the table."""
        summary = self.summary()
        scores = score_table(
            summary,
            summary["intervals_95"],
            summary["constant_floor"],
            speaker_intervals=summary.get("speaker_intervals_95"),
        )
        sections = {"Scores": scores, "Classes": class_table(summary)}
        for name in GROUPS:
            if len(summary.get(f"by_{name}", ())) > 1:
                sections[f"By {name}"] = group_table(name, summary[f"by_{name}"])
        write_report(
            directory,
            title=title,
            summary=summary,
            rows=sorted(self.rows, key=lambda row: row["id"]),
            sections=sections,
            notes=self.notes(),
        )
        return scores

    def notes(self) -> list[str]:
        """What a reader of the scores must know, a sentence each."""
        notes = [f"{len(self.rows)} utterances scored", *self.leakage]
        if self.bad:
            notes.append(f"{len(self.bad)} could not be read and are not scored (see metrics.json)")
        if self.unlabelled:
            notes.append(f"{self.unlabelled} have no label and are not scored")
        for label, number in self.unknown_labels.items():
            notes.append(f"{number} labelled {label!r} are not scored: the model has no such class")
        return notes
