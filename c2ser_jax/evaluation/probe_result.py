"""What the probe found in each fold and over all of them, as data, tables and files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.errors import some_of
from c2ser_jax.evaluation.metrics import (
    bootstrap_intervals,
    classification_metrics,
    constant_floor,
    expected_calibration_error,
)
from c2ser_jax.evaluation.report import (
    class_table,
    fold_table,
    mean_and_deviation,
    score_table,
    write_report,
)


@dataclass(frozen=True)
class FoldResult:
    """One fold: what was chosen on its development data, and how its test data came out."""

    name: str
    sizes: dict[str, int]
    """Utterances in train, dev and test."""
    chosen: dict[str, Any]
    """learning_rate, hidden, epoch, dev_score; empty when there was nothing to choose."""
    grid: list[dict[str, Any]]
    """The same for every grid point."""
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    """One per test utterance: id, fold, label, predicted, probabilities, speaker."""
    shared_speakers: int
    """Test speakers that training or development holds too."""
    speakers: int
    """Test speakers known by name."""


@dataclass(frozen=True)
class ProbeResult:
    """All folds, and their test items scored as one set."""

    classes: list[str]
    folds: list[FoldResult]
    metrics: dict[str, Any]
    intervals: dict[str, dict[str, float]]
    """95 % bootstrap intervals over items."""
    speaker_intervals: dict[str, dict[str, float]] | None
    """The same over speakers; None when some are unknown or there are fewer than five."""
    floor: dict[str, Any]
    calibration_error: float
    warnings: list[str]
    settings: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Test predictions of all folds."""
        return [row for fold in self.folds for row in fold.rows]

    def summary(self) -> dict[str, Any]:
        """Everything but the predictions, ready for `json.dumps`."""
        return {
            **self.metrics,
            "intervals": self.intervals,
            "intervals_over_speakers": self.speaker_intervals,
            "constant_floor": self.floor,
            "calibration_error": self.calibration_error,
            "over_folds": mean_and_deviation(fold.metrics for fold in self.folds),
            "folds": [
                {k: v for k, v in asdict(fold).items() if k != "rows"} for fold in self.folds
            ],
            "warnings": self.warnings,
            "settings": self.settings,
        }

    def sections(self) -> dict[str, str]:
        """The tables of the report by their titles."""
        chosen = {
            fold.name: "{learning_rate:g} × {hidden}, epoch {epoch}".format(**fold.chosen)
            for fold in self.folds
            if fold.chosen
        }
        by_fold = {fold.name: fold.metrics for fold in self.folds}
        return {
            "Folds": fold_table(
                by_fold, pooled=self.metrics, extra=chosen, extra_title="chosen on development"
            ),
            "All test items": score_table(
                self.metrics, self.intervals, self.floor, speaker_intervals=self.speaker_intervals
            ),
            "Classes": class_table(self.metrics),
        }

    def table(self) -> str:
        """The report as text for the terminal."""
        body = "\n\n".join(f"{name}\n{text}" for name, text in self.sections().items())
        return "\n".join([body, *(f"warning: {sentence}" for sentence in self.warnings)])

    def write(self, directory: Path | str, *, title: str = "Probe") -> dict[str, Path]:
        """Writes metrics.json, predictions.jsonl, confusion.png and report.md."""
        return write_report(
            directory,
            title=title,
            summary=self.summary(),
            rows=self.rows,
            sections=self.sections(),
            notes=self.warnings,
        )


def gather_folds(
    folds: Sequence[FoldResult],
    classes: Sequence[str],
    lost: Sequence[str],
    settings: Mapping[str, Any],
) -> ProbeResult:
    """Scores the test items of all folds as one set; `lost` are ids left out for want of features.

    The warnings say when a fold's test speakers were heard in training.
    """
    rows = [row for fold in folds for row in fold.rows]
    targets = [row["label"] for row in rows]
    guesses = [row["predicted"] for row in rows]
    speakers = [row["speaker"] for row in rows]
    over_speakers = None
    if None not in speakers and len(set(speakers)) >= 5:
        over_speakers = bootstrap_intervals(targets, guesses, classes, groups=speakers)
    probabilities = np.array([list(row["probabilities"].values()) for row in rows])
    return ProbeResult(
        classes=list(classes),
        folds=list(folds),
        metrics=classification_metrics(targets, guesses, classes),
        intervals=bootstrap_intervals(targets, guesses, classes),
        speaker_intervals=over_speakers,
        floor=constant_floor(targets, classes),
        calibration_error=expected_calibration_error(
            probabilities, [list(classes).index(target) for target in targets]
        ),
        warnings=_warnings(folds, lost),
        settings=dict(settings),
    )


def _warnings(folds: Sequence[FoldResult], lost: Sequence[str]) -> list[str]:
    found = []
    sharing = [fold for fold in folds if fold.shared_speakers]
    if sharing:
        found.append(
            f"test speakers are also in training in {len(sharing)} of {len(folds)} folds (in "
            f"{sharing[0].name} {sharing[0].shared_speakers} of {sharing[0].speakers}): expect a "
            "lower score on new voices; leave one speaker out to measure it"
        )
    elif not any(fold.speakers for fold in folds):
        found.append("speakers are unknown, so nobody can say whether folds share voices")
    if lost:
        found.append(
            f"scored without {len(lost)} utterances that have no features: {some_of(lost)}"
        )
    return found
