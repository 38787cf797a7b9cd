"""Scores of what answers say, counted by hand; a table that says what was reached."""

import pytest

from c2ser_jax.evaluation.reasoning import reasoning_scores, reasoning_table

LABELS = ["happy", "sad"]


def row(label, said, *, rate="high", explicit_rate="high", words="one two", heard="one two"):
    """A row whose conditions all name `said`."""
    written = {"label": said, "transcript": heard, "rate": explicit_rate}
    return {
        "id": "", "label": label, "language": "en", "transcript": words,
        "levels": {"rate": rate, "pitch": None, "loudness": "low"},
        "answers": {
            "labels": {"label": label},
            "implicit": {"label": said},
            "explicit": {**written, "loudness": "low"},
        },
    }  # fmt: skip


ROWS = [
    row("happy", "happy"),
    row("happy", "sad", explicit_rate="low", heard="one"),
    row("sad", None, rate="low", heard=None),
    row("happy", "happy", rate="low", explicit_rate=None),
]


def test_scores_are_what_counting_gives():
    scores = reasoning_scores(ROWS, LABELS, {"words": 0.5})
    assert scores["num"] == 4 and scores["floor"] == 0.75 and scores["ceilings"] == {"words": 0.5}
    explicit, labels = scores["conditions"]["explicit"], scores["conditions"]["labels"]
    assert explicit["accuracy"] == 0.5 and explicit["ua"] == pytest.approx(1 / 3)
    assert explicit["outside"] == 0.25 and labels["outside"] == 0 and labels["accuracy"] == 1
    assert explicit["styles"]["rate"] == {"accuracy": 0.25, "majority": 0.5, "num": 4}
    assert explicit["styles"]["loudness"] == {"accuracy": 1.0, "majority": 1.0, "num": 4}
    assert explicit["styles"]["pitch"]["num"] == 0
    assert explicit["word_error_rate"] == pytest.approx(3 / 8)


def test_the_table_tells_what_is_reached_and_what_is_not():
    scores = reasoning_scores(ROWS, LABELS, {"words": 0.5})
    lines = reasoning_table(scores, judged=True).splitlines()
    told = {line.split("  ")[0]: line.split()[-1] for line in lines[2:]}
    assert told["explicit: rate (50.0 by guessing)"] == "no"  # 25 is not 20 above 50
    assert told["explicit: loudness (100.0 by guessing)"] == "yes"
    assert told["explicit: word error rate"] == "yes" and told["implicit: label"] == "yes"
    assert told["scored labels"] == "yes" and told["explicit: no label of the set"] == "no"
    assert told["labels: no label of the set"] == "yes"
    assert not any("pitch" in line for line in lines)


def test_nothing_is_expected_of_a_corpus_that_nobody_knows():
    scores = reasoning_scores(ROWS, LABELS)
    plain, expecting = reasoning_table(scores), reasoning_table(scores, judged=True)
    assert "expected" in expecting and "yes" in expecting and "≥" in expecting
    for line, more in zip(plain.splitlines()[2:], expecting.splitlines()[2:], strict=True):
        assert line.split()[-1].replace(".", "").isdigit()  # ends with what was reached
        assert more.startswith(line)
    assert "expected" not in plain
