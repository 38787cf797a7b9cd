"""Temperature scaling: how sure the scores should be, and how far off they were. No jax.

One positive temperature divides all scores, so the order of the classes stays and only the
probabilities move. Shapes: N items, C classes, K bins.
Source: Guo et al. 2017, On Calibration of Modern Neural Networks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import expected_calibration_error

__all__ = [
    "calibrate",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_bins",
    "scaled_probabilities",
]

TEMPERATURES = (0.01, 100.0)
"""The range of the search: at its ends every answer is certain, or all classes are alike."""


def scaled_probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(scores / temperature) float64[N, C] of logits or log-probabilities float[N, C]."""
    if not temperature > 0:
        raise UserError(f"the temperature is {temperature}: it must be positive")
    return np.exp(_log_softmax(np.asarray(scores, np.float64) / temperature))


def negative_log_likelihood(
    scores: np.ndarray, labels: Sequence[int] | np.ndarray, temperature: float = 1.0
) -> float:
    """Mean of -log probability of the true class, for scores float[N, C], labels int[N].

    Raises:
      UserError: as `fit_temperature`.
    """
    scores, labels = _checked(scores, labels)
    return float(-_log_softmax(scores / temperature)[np.arange(len(labels)), labels].mean())


def fit_temperature(scores: np.ndarray, labels: Sequence[int] | np.ndarray) -> float | None:
    """The temperature that minimises the negative log-likelihood, strictly within `TEMPERATURES`.

    The likelihood is convex in 1 / T, so its slope is bisected over log T. None where no such
    temperature is the best: the scores are never wrong, or worse than no scores. Scores that are
    all alike give 1.

    Args:
      scores: float[N, C], logits or log-probabilities before any scaling.
      labels: int[N], true class numbers.

    Raises:
      UserError: no items, other shapes, scores that aren't finite, or labels outside [0, C).
    """
    scores, labels = _checked(scores, labels)
    scores = scores - scores.mean(1, keepdims=True)
    if not scores.any():
        return 1.0
    true = scores[np.arange(len(labels)), labels]

    def slope(log_temperature: float) -> float:
        """Derivative of the likelihood by 1 / T: expected less true score; it rises with 1 / T."""
        probabilities = np.exp(_log_softmax(scores * np.exp(-log_temperature)))
        return float(((probabilities * scores).sum(1) - true).mean())

    low, high = np.log(TEMPERATURES)
    if slope(low) <= 0 or slope(high) >= 0:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def calibrate(
    scores: np.ndarray, labels: Sequence[int] | np.ndarray, *, bins: int = 15
) -> dict[str, Any]:
    """Fits the temperature on a development set and says what it changes there.

    Returns {"temperature", "fitted", "wrong", "num", "nll_before", "nll_after", "ece_before",
    "ece_after"}: whether a temperature fits, which stays 1 otherwise, and how many of the answers
    are wrong; arguments and errors as `fit_temperature`.
    """
    fitted = fit_temperature(scores, labels)
    temperature = 1.0 if fitted is None else fitted
    wrong = int((np.argmax(scores, 1) != np.asarray(labels)).sum())
    result: dict[str, Any] = {
        "temperature": temperature, "fitted": fitted is not None, "wrong": wrong,
        "num": len(labels),
    }  # fmt: skip
    for name, value in (("before", 1.0), ("after", temperature)):
        probabilities = scaled_probabilities(scores, value)
        result[f"nll_{name}"] = negative_log_likelihood(scores, labels, value)
        result[f"ece_{name}"] = expected_calibration_error(probabilities, labels, bins)
    return result


def reliability_bins(
    probabilities: np.ndarray, labels: Sequence[int] | np.ndarray, bins: int = 15
) -> list[dict[str, Any]]:
    """The K bars of a reliability diagram, equal-width bins of confidence (low, high].

    Each has `low`, `high`, `count`, and of its items mean `confidence` and `accuracy` (None where
    there are none). The count-weighted gaps add up to `expected_calibration_error`.

    Args:
      probabilities: float[N, C].
      labels: int[N], true class numbers.
      bins: K.

    Raises:
      UserError: as `fit_temperature`.
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    result = []
    for k in range(bins):
        inside = place == k
        count = int(inside.sum())
        result.append(
            {
                "low": k / bins,
                "high": (k + 1) / bins,
                "count": count,
                "confidence": float(confidence[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return result


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _checked(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise UserError(
            f"calibration needs one row of scores per label, not {scores.shape} for "
            f"{labels.shape}: give scores [N, C] and N labels, at least one"
        )
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise UserError(f"the scores of item {row} are not finite: leave it out")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise UserError(
            f"labels must be class numbers from 0 to {scores.shape[1] - 1}: leave items without "
            "a label out"
        )
    return scores, labels
