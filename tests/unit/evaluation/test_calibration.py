"""Temperatures in closed form, and what a reliability diagram shows."""

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.calibration import (
    calibrate,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
    scaled_probabilities,
)


def two_classes(confident: float, right: int, wrong: int):
    """Scores of two classes that differ by `confident`, the larger one right or wrong."""
    scores = np.tile([confident, 0.0], (right + wrong, 1))
    return scores, np.array([0] * right + [1] * wrong)


@pytest.mark.parametrize(("right", "wrong"), [(3, 1), (9, 1), (11, 9)])
def test_the_temperature_makes_confidence_equal_to_accuracy(right, wrong):
    # One gap g everywhere: sigmoid(g / T) = accuracy, so T = g / log(right / wrong).
    scores, labels = two_classes(1.0, right, wrong)
    temperature = fitted(scores, labels)
    np.testing.assert_allclose(temperature, 1.0 / np.log(right / wrong), rtol=1e-9)
    probabilities = scaled_probabilities(scores, temperature)
    np.testing.assert_allclose(probabilities[:, 0], right / (right + wrong), rtol=1e-9)
    assert expected_calibration_error(probabilities, labels) < 1e-9
    np.testing.assert_allclose(fitted(10 * scores - 3, labels), 10 * temperature)


def fitted(scores, labels) -> float:
    temperature = fit_temperature(scores, labels)
    assert temperature is not None
    return temperature


def random_scores(seed: int = 0):
    """Overconfident scores of five classes: labels are drawn at three times the temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 4, (4000, 5))
    noise = rng.gumbel(size=scores.shape)
    return scores, (scores / 3 + noise).argmax(1)


def test_no_other_temperature_is_more_likely_and_the_answers_stay():
    scores, labels = random_scores()
    temperature = fitted(scores, labels)
    assert temperature == pytest.approx(3.0, rel=0.06)
    best = negative_log_likelihood(scores, labels, temperature)
    for other in (0.5, 0.98, 1.02, 2.0):
        assert negative_log_likelihood(scores, labels, other * temperature) > best
    before, after = scaled_probabilities(scores), scaled_probabilities(scores, temperature)
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))
    np.testing.assert_array_equal(after.argmax(1), scores.argmax(1))
    np.testing.assert_allclose(after.sum(1), 1.0)
    log_probabilities = np.log(before)
    np.testing.assert_allclose(fitted(log_probabilities, labels), temperature, rtol=1e-9)


def test_calibrating_tells_what_it_changed():
    scores, labels = random_scores(1)
    told = calibrate(scores, labels, bins=10)
    assert told["num"] == 4000 and told["fitted"] and 0 < told["wrong"] < 4000
    assert told["nll_after"] < told["nll_before"]
    assert told["ece_after"] < 0.03 < 0.2 < told["ece_before"]
    assert told["ece_before"] == expected_calibration_error(
        scaled_probabilities(scores), labels, 10
    )


def test_no_temperature_fits_scores_never_wrong_or_worse_than_none():
    for right, wrong in ((5, 0), (1, 4)):
        scores, labels = two_classes(2.0, right, wrong)
        assert fit_temperature(scores, labels) is None
        told = calibrate(scores, labels)
        assert told["temperature"] == 1.0 and told["fitted"] is False and told["wrong"] == wrong
        assert told["nll_after"] == told["nll_before"] and told["ece_after"] == told["ece_before"]
    assert fit_temperature(np.full((3, 4), 7.0), [0, 1, 2]) == 1.0
    huge = np.array([[1e5, 0.0], [1e5, 0.0], [1e5, 0.0]])
    assert fit_temperature(huge, [0, 0, 1]) is None  # 1e5 / log 2 is out of range
    assert fit_temperature(huge / 1e4, [0, 0, 1]) == pytest.approx(10 / np.log(2))


def test_reliability_bars_add_up_to_the_calibration_error():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])
    labels = np.array([0, 1, 0, 0, 1])
    bars = reliability_bins(probabilities, labels, bins=10)
    assert [bar["count"] for bar in bars] == [0, 0, 0, 0, 1, 0, 1, 0, 2, 1]
    assert (bars[8]["low"], bars[8]["high"]) == (0.8, 0.9)  # (low, high]: 0.9 belongs here
    assert bars[8]["accuracy"] == 0.5 and bars[8]["confidence"] == pytest.approx(0.9)
    assert bars[0]["confidence"] is None and bars[4]["accuracy"] == 0.0
    scores, many = random_scores(2)
    for p, y in ((probabilities, labels), (scaled_probabilities(scores), many)):
        bars = [bar for bar in reliability_bins(p, y) if bar["count"]]
        gaps = sum(bar["count"] * abs(bar["confidence"] - bar["accuracy"]) for bar in bars)
        assert gaps / len(y) == pytest.approx(expected_calibration_error(p, y))


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (np.ones((3, 2)), [0, 1], "one row of scores per label"),
        (np.ones((0, 2)), [], "at least one"),
        (np.ones(3), [0, 1, 1], "N, C"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), [0, 1], "item 1 are not finite"),
        (np.ones((2, 2)), [0, 2], "from 0 to 1"),
        (np.ones((2, 2)), [0, -1], "without a label"),
        (np.ones((2, 2)), [0.0, 1.0], "class numbers"),
    ],
)
def test_what_cannot_be_calibrated_gets_a_sentence(scores, labels, words):
    with pytest.raises(UserError, match=words):
        fit_temperature(scores, labels)
    with pytest.raises(UserError, match="must be positive"):
        scaled_probabilities(np.ones((1, 2)), 0.0)
