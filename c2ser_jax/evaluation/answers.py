"""Scores of answers, whole and by language and emotion, with intervals. No jax.

A row is what was answered about one utterance under one condition: `id`, `label` (true),
`predicted` (None: the answer names no label of the set), `scores` {label: log-probability before
any temperature}, `language`, and of written answers `named`, the emotion that they name whether or
not it is in the set. Shapes: N rows, C classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from c2ser_jax.evaluation.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    scaled_probabilities,
)
from c2ser_jax.evaluation.metrics import (
    bootstrap_intervals,
    class_indices,
    classification_metrics,
    confusion_matrix,
    constant_floor,
    percentile_interval,
)
from c2ser_jax.evaluation.stability import agreement, answer_rates

Row = Mapping[str, Any]
NONE = "none"
"""Stands in tables for an answer that names no label of the set."""


def answer_metrics(
    rows: Sequence[Row],
    classes: Sequence[str],
    *,
    temperature: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is said of one condition's answers; written answers also get their rates.

    The classes end with `NONE` where an answer names no label: it is wrong, and no part of a mean
    over classes.

    Raises:
      UserError: there are no rows, or a true label is no class.
    """
    found = _scored(rows, classes, resamples, seed)
    targets = class_indices([row["label"] for row in rows], classes)
    scores = score_array(rows, classes)
    probabilities = scaled_probabilities(scores, temperature)
    found["calibration"] = {
        "temperature": temperature,
        "error": expected_calibration_error(probabilities, targets),
        "negative_log_likelihood": negative_log_likelihood(scores, targets, temperature),
        "bins": reliability_bins(probabilities, targets),
    }
    found["by_language"] = {}
    for language in sorted({str(row.get("language")) for row in rows}):
        part = [row for row in rows if str(row.get("language")) == language]
        found["by_language"][language] = _scored(part, classes, resamples, seed)
    if any("named" in row for row in rows):
        named = [row.get("named") for row in rows]
        found["answers"] = answer_rates(named, classes, resamples=resamples, seed=seed)
    return found


def _scored(rows: Sequence[Row], classes: Sequence[str], resamples: int, seed: int):
    """Metrics with intervals and the floor of the best constant answer."""
    targets = [row["label"] for row in rows]
    predictions = [NONE if row["predicted"] is None else row["predicted"] for row in rows]
    outside = int(NONE in predictions)
    classes = [*classes, NONE] if outside else list(classes)
    options: dict[str, Any] = dict(resamples=resamples, seed=seed)
    found = classification_metrics(targets, predictions, classes, outside=outside)
    del found["report"]
    found["intervals_95"] = bootstrap_intervals(
        targets, predictions, classes, outside=outside, **options
    )
    intervals = class_intervals(targets, predictions, classes, **options)
    for name, scores in found["per_class"].items():
        scores["intervals_95"] = intervals[name]
    found["constant_floor"] = constant_floor(targets, classes)
    return found


def class_intervals(
    targets: Sequence[str],
    predictions: Sequence[str],
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, dict[str, float]]]:
    """{class: {"precision" | "recall" | "f1": {"low", "high", "sd"}}}, items resampled singly."""
    C = len(classes)
    cells = confusion_matrix(
        class_indices(targets, classes), class_indices(predictions, classes), C
    ).ravel()
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(targets), cells / cells.sum(), size=resamples).reshape(-1, C, C)
    hits = np.diagonal(draws, axis1=1, axis2=2)
    support, predicted = draws.sum(2), draws.sum(1)
    values = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
    }
    return {
        str(name): {k: percentile_interval(v[:, i], level) for k, v in values.items()}
        for i, name in enumerate(classes)
    }


def score_array(rows: Sequence[Row], classes: Sequence[str]) -> np.ndarray:
    """float64[N, C], the rows' log-probabilities before any temperature."""
    return np.array([[row["scores"][name] for name in classes] for row in rows], np.float64)


def compare_conditions(
    conditions: Mapping[str, Sequence[Row]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """`agreement` of the answers to the same utterances under several conditions.

    Utterances that lack a condition are left out. None when nothing is left to compare.
    """
    tables = {name: {r["id"]: r["predicted"] for r in rows} for name, rows in conditions.items()}
    if len(tables) < 2:
        return None
    shared = sorted(set.intersection(*(set(table) for table in tables.values())))
    if not shared:
        return None
    answers = {name: [table[one] for one in shared] for name, table in tables.items()}
    return agreement(answers, resamples=resamples, seed=seed)


def worst_errors(rows: Sequence[Row], classes: Sequence[str], most: int) -> list[Row]:
    """The wrong answers that the model is surest of, at most `most`, the surest first.

    Sureness is how far the log-probability of the best label lies above that of the true one.
    """
    wrong = [row for row in rows if row["predicted"] != row["label"]]

    def gap(row: Row) -> float:
        return max(row["scores"].values()) - row["scores"][row["label"]]

    return sorted(wrong, key=lambda row: (-gap(row), str(row["id"])))[:most]
