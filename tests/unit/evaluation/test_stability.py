"""Agreement and rates in closed form, and intervals beside resampling the items themselves."""

import itertools

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.stability import agreement, answer_rates, share

SAD, GLAD, CALM = "sad", "glad", "calm"


def test_agreement_of_three_prompts_counted_by_hand():
    told = agreement(
        {
            "one": [SAD, SAD, GLAD, CALM],
            "two": [SAD, GLAD, GLAD, SAD],
            "three": [SAD, GLAD, GLAD, GLAD],
        },
        resamples=50,
    )
    # Items agree in 3, 1, 3 and 0 of 3 pairs; of 12 answers 5 are sad, 6 glad and 1 calm.
    assert told["num"] == 4 and told["conditions"] == ["one", "two", "three"]
    assert told["agreement"]["value"] == pytest.approx((3 + 1 + 3 + 0) / 12)
    chance = (25 + 36 + 1) / 144
    assert told["kappa"]["value"] == pytest.approx((7 / 12 - chance) / (1 - chance))
    assert told["changed"]["value"] == 0.5
    assert [(p["first"], p["second"], p["agreement"]) for p in told["pairs"]] == [
        ("one", "two", 0.5),
        ("one", "three", 0.5),
        ("two", "three", 0.75),
    ]


def test_kappa_of_fleiss_own_example():
    # Fleiss 1971 as tabulated by Wikipedia: ten subjects, fourteen raters, kappa 0.210.
    rows = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    answers = [
        [str(value) for value, count in enumerate(row) for _ in range(count)] for row in rows
    ]
    columns = {f"rater {i}": [row[i] for row in answers] for i in range(14)}
    told = agreement(columns, resamples=10)
    assert told["kappa"]["value"] == pytest.approx(0.210, abs=5e-4)
    assert told["agreement"]["value"] == pytest.approx(0.378, abs=5e-4)


def test_full_agreement_opposite_answers_and_one_label():
    same = agreement({"a": [SAD, GLAD, CALM], "b": [SAD, GLAD, CALM]}, resamples=20)
    assert same["agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0, "sd": 0.0}
    assert same["kappa"]["value"] == 1.0 and same["changed"]["value"] == 0.0
    other = agreement({"a": [SAD, GLAD], "b": [GLAD, SAD]}, resamples=20)
    assert other["agreement"]["value"] == 0.0 and other["kappa"]["value"] == -1.0
    assert other["changed"]["value"] == 1.0
    constant = agreement({"a": [SAD, SAD], "b": [SAD, SAD]}, resamples=20)
    assert constant["kappa"]["value"] == 1.0


def test_no_answer_is_a_value_of_its_own():
    told = agreement({"a": [None, None, SAD], "b": [None, SAD, SAD]}, resamples=20)
    assert told["agreement"]["value"] == pytest.approx(2 / 3)
    with_name = agreement({"a": ["x", "x", SAD], "b": ["x", SAD, SAD]}, resamples=20)
    assert told == with_name


def random_answers(count: int, seed: int = 0):
    """Three conditions: a common label, replaced in each by chance."""
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 4, count)
    columns = {}
    for name in "abc":
        replaced = np.where(rng.random(count) < 0.3, rng.integers(0, 4, count), common)
        columns[name] = [str(value) for value in replaced]
    return columns


def test_intervals_agree_with_resampling_the_items_themselves():
    columns = random_answers(150)
    told = agreement(columns, resamples=3000, seed=1)
    rng, drawn = np.random.default_rng(7), []
    for _ in range(1500):
        rows = rng.integers(0, 150, 150)
        part = {name: [column[i] for i in rows] for name, column in columns.items()}
        table = np.array(list(part.values()))
        pairs = itertools.combinations(table, 2)
        agree = np.mean([(first == second).mean() for first, second in pairs])
        chance = sum(np.mean(table == str(value)) ** 2 for value in range(4))
        drawn.append((agree, (agree - chance) / (1 - chance)))
    for values, name in zip(np.array(drawn).T, ("agreement", "kappa"), strict=True):
        low, high = np.percentile(values, [2.5, 97.5])
        assert told[name]["low"] == pytest.approx(low, abs=0.012)
        assert told[name]["high"] == pytest.approx(high, abs=0.012)
        assert told[name]["low"] < told[name]["value"] < told[name]["high"]
    assert agreement(columns, resamples=50, seed=2) == agreement(columns, resamples=50, seed=2)


def test_groups_are_resampled_whole():
    columns = {"a": [SAD, GLAD] * 40, "b": [SAD, GLAD] * 20 + [GLAD, SAD] * 20}
    speakers = [f"s{i // 20}" for i in range(80)]  # two stable speakers and two that never agree
    items = agreement(columns, resamples=2000)
    grouped = agreement(columns, resamples=2000, groups=speakers)
    for name in ("agreement", "changed"):
        assert items[name]["sd"] == pytest.approx((0.25 / 80) ** 0.5, rel=0.1)
        assert grouped[name]["sd"] == pytest.approx((0.25 / 4) ** 0.5, rel=0.1)
        assert grouped[name]["value"] == items[name]["value"] == 0.5
    with pytest.raises(UserError, match="3 group names for 80 items"):
        agreement(columns, groups=["x"] * 3)


def test_rates_tell_unreadable_answers_from_wrong_labels():
    named = [SAD, None, "bored", GLAD, GLAD, None, SAD, SAD, "x", SAD]
    told = answer_rates(named, [SAD, GLAD], resamples=2000)
    assert told["num"] == 10
    assert told["parse_rate"]["value"] == 0.8
    assert told["hallucination_rate"]["value"] == 0.2
    assert told["valid_rate"]["value"] == pytest.approx(0.6)
    assert told["valid_rate"]["sd"] == pytest.approx((0.6 * 0.4 / 10) ** 0.5, rel=0.1)
    perfect = answer_rates([SAD, GLAD], [SAD, GLAD])
    assert perfect["hallucination_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0, "sd": 0.0}
    assert share([True, False, True, True])["value"] == 0.75


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"a": [SAD]}, "two conditions at least"),
        ({"a": [SAD, SAD], "b": [SAD]}, "given are a 2, b 1"),
        ({"a": [], "b": []}, "an answer for every item"),
    ],
)
def test_answers_that_cannot_be_compared_get_a_sentence(answers, words):
    with pytest.raises(UserError, match=words):
        agreement(answers)
    with pytest.raises(UserError, match="nothing to score"):
        answer_rates([], [SAD])
