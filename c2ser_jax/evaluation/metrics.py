"""Scores categorical predictions: WA, UA, F1 forms, intervals, floors, calibration. No jax.

Shapes: N items, C classes, R resamples, G groups. A confusion matrix has targets as rows and
predictions as columns. All results are plain Python types that `json.dumps` accepts.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError

METRICS = ("wa", "ua", "wf1", "macro_f1", "micro_f1")


def class_indices(labels: Sequence[Any] | np.ndarray, classes: Sequence[str], what: str = "label"):
    """Turns names or numbers into class numbers int64[N].

    Raises:
        UserError: a name that is not in `classes`, or a number outside [0, C).
    """
    lookup = {name: index for index, name in enumerate(classes)}
    result = np.empty(len(labels), np.int64)
    for position, label in enumerate(labels):
        index = int(label) if isinstance(label, (int, np.integer)) else lookup.get(label)
        if index is None or not 0 <= index < len(classes):
            raise UserError(
                f"{what} {label!r} at position {position} is not one of the {len(classes)} classes "
                f"({', '.join(map(str, classes))}); map it or leave the item out"
            )
        result[position] = index
    return result


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64[C, C] of class numbers int[N] (rows targets, columns predictions)."""
    cells = np.asarray(targets) * classes + np.asarray(predictions)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def scores_from_confusion(confusion: np.ndarray, outside: int = 0) -> dict[str, np.ndarray]:
    """All `METRICS` of confusion matrices [..., C, C], each as float64[...].

    The last `outside` classes are no labels, such as answers that name none: never right, and no
    part of a mean over classes.

    wa: accuracy (= micro_f1). ua: mean recall over classes present in the targets (balanced
    accuracy). wf1: F1 weighted by support. macro_f1: mean F1 over classes present in targets or
    predictions. Undefined ratios count 0 (scikit-learn's rules, as EmoBox/EmoEval.py uses them).
    """
    confusion = np.asarray(confusion, np.float64)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    total = np.maximum(support.sum(-1), 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    in_targets, in_either = support > 0, support + predicted > 0
    in_either[..., in_either.shape[-1] - outside :] = False
    accuracy = hits.sum(-1) / total
    return {
        "wa": accuracy,
        "ua": (recall * in_targets).sum(-1) / np.maximum(in_targets.sum(-1), 1),
        "wf1": (f1 * support).sum(-1) / total,
        "macro_f1": (f1 * in_either).sum(-1) / np.maximum(in_either.sum(-1), 1),
        "micro_f1": accuracy,
    }


def _checked(targets, predictions, classes):
    if len(targets) != len(predictions):
        raise UserError(
            f"{len(targets)} targets but {len(predictions)} predictions: give one for each item"
        )
    if len(targets) == 0:
        raise UserError("there is nothing to score: the list of targets is empty")
    return (
        class_indices(targets, classes, "target"),
        class_indices(predictions, classes, "prediction"),
    )


def classification_metrics(
    targets: Sequence[Any] | np.ndarray,
    predictions: Sequence[Any] | np.ndarray,
    classes: Sequence[str],
    *,
    outside: int = 0,
) -> dict[str, Any]:
    """Scores predicted classes against true ones (each N names or class numbers).

    The last `outside` of `classes` are no labels (see `scores_from_confusion`).

    Returns a dict: the `METRICS` as floats, `num` = N, `classes`, `confusion` (list[C][C]),
    `per_class` {name: precision, recall, f1, support, predicted}, `absent_in_targets` (names), and
    `report`, scikit-learn's text for the classes that occur in targets or predictions.

    Raises:
        UserError: nothing to score, unequal lengths, or an unknown class.
    """
    from sklearn.metrics import classification_report

    true, guess = _checked(targets, predictions, classes)
    confusion = confusion_matrix(true, guess, len(classes))
    present = np.flatnonzero(confusion.sum(0) + confusion.sum(1)).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # absent classes count 0, and the result says which
        report = classification_report(
            true,
            guess,
            labels=present,
            target_names=[str(classes[i]) for i in present],
            zero_division=0,  # pyright: ignore[reportArgumentType]
        )
    return {
        **{n: float(value) for n, value in scores_from_confusion(confusion, outside).items()},
        "num": int(confusion.sum()),
        "classes": [str(name) for name in classes],
        "confusion": confusion.tolist(),
        "per_class": _per_class(confusion, classes),
        "absent_in_targets": [
            str(name)
            for name, support in zip(classes, confusion.sum(1), strict=True)
            if not support
        ],
        "report": report,
    }


def _per_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float | int]]:
    hits, support, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return {
        str(name): {
            "precision": float(hits[i] / max(predicted[i], 1)),
            "recall": float(hits[i] / max(support[i], 1)),
            "f1": float(2 * hits[i] / max(support[i] + predicted[i], 1)),
            "support": int(support[i]),
            "predicted": int(predicted[i]),
        }
        for i, name in enumerate(classes)
    }


def bootstrap_intervals(
    targets: Sequence[Any] | np.ndarray,
    predictions: Sequence[Any] | np.ndarray,
    classes: Sequence[str] | None = None,
    *,
    metrics: Sequence[str] = ("wa", "ua", "macro_f1", "wf1"),
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[Any] | None = None,
    outside: int = 0,
) -> dict[str, dict[str, float]]:
    """Percentile bootstrap: {metric: {"low", "high", "sd"}} at the given level.

    Items are resampled one by one, or, with `groups` (N speaker names, say), whole groups at a
    time, which is the honest choice when items of a group resemble each other. Every metric is a
    function of the confusion matrix, so a resample is one multinomial draw of the G groups or of
    the C x C cells. Without `classes`, targets and predictions are class numbers; the last
    `outside` of them are no labels (see `scores_from_confusion`).

    Raises:
        UserError: as `classification_metrics`, an unknown metric, or a group list of another
            length.
    """
    if classes is None:
        top = max([*map(int, targets), *map(int, predictions)], default=-1)
        classes = [str(i) for i in range(top + 1)]
    true, guess = _checked(targets, predictions, classes)
    for name in metrics:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    rng, size = np.random.default_rng(seed), len(classes)
    if groups is None:
        cells = confusion_matrix(true, guess, size).ravel()
        draws = rng.multinomial(len(true), cells / cells.sum(), size=resamples)  # [R, C * C]
    else:
        if len(groups) != len(true):
            raise UserError(f"{len(groups)} group names for {len(true)} items: give one for each")
        _, member = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)
        count = int(member.max()) + 1
        parts = np.stack(
            [confusion_matrix(true[member == g], guess[member == g], size) for g in range(count)]
        )
        weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples)  # [R, G]
        draws = weights @ parts.reshape(count, -1)
    scores = scores_from_confusion(draws.reshape(resamples, size, size), outside)
    return {name: percentile_interval(scores[name], level) for name in metrics}


def percentile_interval(values: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """{"low", "high", "sd"} of resampled values float[R] at the given level."""
    tail = 50 * (1 - level)
    return {
        "low": float(np.percentile(values, tail)),
        "high": float(np.percentile(values, 100 - tail)),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
    }


def constant_floor(targets: Sequence[Any] | np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """What the best constant answer scores: {"label", and every one of `METRICS`}.

    The most frequent target wins by WA and both F1 forms, and ties by UA, where every class that
    occurs scores 1 / (number of classes present).
    """
    true, _ = _checked(targets, targets, classes)
    best = int(np.bincount(true, minlength=len(classes)).argmax())
    confusion = confusion_matrix(true, np.full_like(true, best), len(classes))
    scores = {name: float(value) for name, value in scores_from_confusion(confusion).items()}
    return {"label": str(classes[best]), **scores}


def grouped(
    rows: Iterable[Mapping[str, Any]],
    by: str,
    classes: Sequence[str],
    *,
    target: str = "label",
    prediction: str = "predicted",
) -> dict[str, dict[str, Any]]:
    """Scores per value of `by` (speaker, language, corpus): {value: METRICS and `num`}, sorted.

    `rows` hold the true class under `target` and the predicted one under `prediction`; rows whose
    `by` is missing or None are gathered under "unknown".
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        value = row.get(by)
        groups.setdefault("unknown" if value is None else str(value), []).append(row)
    result = {}
    for value in sorted(groups):
        true, guess = _checked(
            [row[target] for row in groups[value]],
            [row[prediction] for row in groups[value]],
            classes,
        )
        scores = scores_from_confusion(confusion_matrix(true, guess, len(classes)))
        result[value] = {**{name: float(s) for name, s in scores.items()}, "num": len(true)}
    return result


def expected_calibration_error(
    probabilities: np.ndarray, targets: Sequence[int] | np.ndarray, bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal-width confidence bins, weighted by count.

    `probabilities` float[N, C], `targets` class numbers int[N] (Guo et al. 2017, equation 3).
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    if len(targets) == 0 or probabilities.shape[0] != len(targets):
        raise UserError(
            f"calibration needs one row of probabilities per target, not {probabilities.shape} "
            f"for {len(targets)} targets"
        )
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == targets).astype(np.float64)
    # bins are (lower, upper], so a confidence of exactly 1 belongs to the last one
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(targets))
