import json

import numpy as np
import pytest
from sklearn import metrics as reference

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import (
    METRICS,
    bootstrap_intervals,
    class_indices,
    classification_metrics,
    confusion_matrix,
    constant_floor,
    expected_calibration_error,
    grouped,
    scores_from_confusion,
)

CLASSES = ["angry", "bored", "calm", "glad", "sad"]


def answers(seed, count=60, hit_share=0.6, classes=5):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count)
    guesses = np.where(rng.random(count) < hit_share, targets, rng.integers(0, classes, count))
    return targets, guesses


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed):
    targets, guesses = answers(seed, count=40)
    if seed == 1:
        targets = np.where(targets == 3, 0, targets)  # class 3 never true
    if seed == 2:
        guesses = np.where(guesses == 4, 1, guesses)  # class 4 never guessed
    result = classification_metrics(targets, guesses, CLASSES)
    kw = {"zero_division": 0}
    assert result["wa"] == pytest.approx(reference.accuracy_score(targets, guesses), abs=1e-12)
    recalls = reference.recall_score(
        targets, guesses, labels=np.unique(targets), average="macro", **kw
    )
    assert result["ua"] == pytest.approx(recalls, abs=1e-12)
    for name, average in (("wf1", "weighted"), ("macro_f1", "macro"), ("micro_f1", "micro")):
        expected = reference.f1_score(targets, guesses, average=average, **kw)
        assert result[name] == pytest.approx(expected, abs=1e-12), name
    expected = reference.confusion_matrix(targets, guesses, labels=range(5))
    np.testing.assert_array_equal(result["confusion"], expected)
    assert result["confusion"] != np.transpose(expected).tolist()
    columns = reference.precision_recall_fscore_support(targets, guesses, labels=range(5), **kw)
    for i, name in enumerate(CLASSES):
        row = result["per_class"][name]
        got = [row["precision"], row["recall"], row["f1"], row["support"]]
        np.testing.assert_allclose(got, [np.asarray(c)[i] for c in columns], atol=1e-12)
    assert json.loads(json.dumps(result)) == result
    assert result["absent_in_targets"] == (["glad"] if seed == 1 else [])


def test_names_and_numbers_are_the_same_question():
    targets, guesses = answers(3)
    by_number = classification_metrics(targets, guesses, CLASSES)
    names = [CLASSES[i] for i in targets], [CLASSES[i] for i in guesses]
    assert classification_metrics(*names, CLASSES) == by_number
    assert classification_metrics(*names[::-1], CLASSES) != by_number


@pytest.mark.parametrize(
    ("targets", "guesses", "words"),
    [
        ([], [], "nothing to score"),
        ([0, 1], [0], "2 targets but 1 predictions"),
        (["angry"], ["furious"], "prediction 'furious' at position 0"),
        ([5], [0], "target 5"),
        ([None], [0], "target None"),
        ([-1], [0], "target -1"),
    ],
)
def test_unusable_input_is_one_sentence(targets, guesses, words):
    with pytest.raises(UserError, match=words):
        classification_metrics(targets, guesses, CLASSES)


def test_scores_of_many_confusions_equal_those_of_each():
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 6, (4, 3, 5, 5))
    stack[0, 0, 2] = 0
    scores = scores_from_confusion(stack)
    for index in np.ndindex(4, 3):
        for name, value in scores_from_confusion(stack[index]).items():
            assert scores[name][index] == pytest.approx(float(value), abs=1e-15)


def test_bootstrap_agrees_with_resampling_the_items_themselves():
    targets, guesses = answers(4, count=120, classes=4)
    got = bootstrap_intervals(targets, guesses, resamples=4000, seed=1)
    rng = np.random.default_rng(9)
    drawn = []
    for _ in range(4000):
        rows = rng.integers(0, 120, 120)
        drawn.append(scores_from_confusion(confusion_matrix(targets[rows], guesses[rows], 4)))
    for name in ("wa", "ua", "macro_f1", "wf1"):
        values = np.array([d[name] for d in drawn])
        np.testing.assert_allclose(
            [got[name]["low"], got[name]["high"]], np.percentile(values, [2.5, 97.5]), atol=0.012
        )
        assert got[name]["sd"] == pytest.approx(values.std(), rel=0.08)
    narrow = bootstrap_intervals(targets, guesses, resamples=4000, seed=1, level=0.5)
    assert narrow["ua"]["high"] - narrow["ua"]["low"] < got["ua"]["high"] - got["ua"]["low"]


def test_bootstrap_is_a_function_of_its_seed():
    targets, guesses = answers(5)
    first = bootstrap_intervals(targets, guesses, CLASSES, seed=3, resamples=50)
    assert bootstrap_intervals(targets, guesses, CLASSES, seed=3, resamples=50) == first
    assert bootstrap_intervals(targets, guesses, CLASSES, seed=4, resamples=50) != first


def test_bootstrap_over_speakers_is_wider_when_speakers_differ():
    targets = np.tile([0, 1], 60)
    speakers = np.repeat(np.arange(6), 20)
    guesses = np.where(speakers < 3, targets, 1 - targets)  # three easy and three hopeless speakers
    items = bootstrap_intervals(targets, guesses, metrics=("wa",), resamples=2000)["wa"]
    groups = bootstrap_intervals(
        targets, guesses, metrics=("wa",), resamples=2000, groups=speakers.tolist()
    )["wa"]
    assert groups["sd"] == pytest.approx((0.25 / 6) ** 0.5, rel=0.1)
    assert items["sd"] == pytest.approx((0.25 / 120) ** 0.5, rel=0.1)
    with pytest.raises(UserError, match="5 group names for 120 items"):
        bootstrap_intervals(targets, guesses, groups=["x"] * 5)
    with pytest.raises(UserError, match="unknown metric 'auc'"):
        bootstrap_intervals(targets, guesses, metrics=("auc",))


def test_floor_is_the_best_of_all_constant_answers():
    targets = np.array([2, 2, 2, 0, 0, 3, 2, 1])
    floor = constant_floor(targets, CLASSES)
    tries = [
        classification_metrics(targets, np.full_like(targets, constant), CLASSES)
        for constant in range(5)
    ]
    for name in METRICS:
        assert floor[name] == pytest.approx(max(t[name] for t in tries)), name
    assert floor["label"] == "calm" and floor["wa"] == 0.5 and floor["ua"] == 0.25


def test_groups_are_scored_apart():
    rows = [
        {"label": "sad", "predicted": "sad", "speaker": "a"},
        {"label": "glad", "predicted": "sad", "speaker": "a"},
        {"label": "glad", "predicted": "glad", "speaker": "b"},
        {"label": "calm", "predicted": "sad", "speaker": None},
    ]
    result = grouped(rows, "speaker", CLASSES)
    assert list(result) == ["a", "b", "unknown"]
    assert [result[g]["wa"] for g in result] == [0.5, 1.0, 0.0]
    assert [result[g]["num"] for g in result] == [2, 1, 1]
    assert list(grouped(rows, "language", CLASSES)) == ["unknown"]


def test_calibration_error_of_known_confidences():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [1.0, 0.0]])
    # confidence .9 right half of the time, .7 wrong, 1.0 right: gaps .8/2, .7, 0 over four items
    error = expected_calibration_error(probabilities, [0, 1, 0, 0], bins=10)
    assert error == pytest.approx((2 * 0.4 + 0.7 + 0) / 4)
    assert expected_calibration_error(np.eye(3), [0, 1, 2]) == 0
    with pytest.raises(UserError, match="one row of probabilities"):
        expected_calibration_error(probabilities, [0, 1])


def test_class_numbers_accept_numpy_names():
    np.testing.assert_array_equal(class_indices(np.array(["sad", "angry"]), CLASSES), [4, 0])


def test_answers_outside_the_label_set_are_wrong_and_no_class():
    """A class of its own would pull the mean over classes down by a third."""
    targets, guesses = ["a", "a", "b", "b"], ["a", "none", "b", "b"]
    found = classification_metrics(targets, guesses, ["a", "b", "none"], outside=1)
    assert found["wa"] == 0.75 and found["ua"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    counted = classification_metrics(targets, guesses, ["a", "b", "none"])
    assert counted["macro_f1"] == pytest.approx((2 / 3 + 1) / 3)
    interval = bootstrap_intervals(targets, guesses, ["a", "b", "none"], outside=1)["macro_f1"]
    assert interval["low"] <= found["macro_f1"] <= interval["high"]
