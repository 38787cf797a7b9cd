import pytest

from c2ser_jax.evaluation.metrics import (
    bootstrap_intervals,
    classification_metrics,
    constant_floor,
    grouped,
)
from c2ser_jax.evaluation.report import (
    class_table,
    fold_table,
    group_table,
    markdown_report,
    mean_and_deviation,
    score_table,
    text_table,
    write_text,
)

CLASSES = ["calm", "sad"]
TARGETS, GUESSES = ["sad", "sad", "calm", "sad"], ["sad", "calm", "calm", "sad"]
METRICS = classification_metrics(TARGETS, GUESSES, CLASSES)


def test_columns_are_aligned():
    table = text_table(["name", "n"], [["a", 5], ["long name", 123]])
    assert table.splitlines() == [
        "name         n",
        "---------  ---",
        "a            5",
        "long name  123",
    ]


def test_score_table_shows_interval_and_floor_only_when_given():
    assert "UA            83.3" not in score_table(METRICS)
    assert score_table(METRICS).splitlines()[2].split() == ["UA", "83.3"]
    intervals = bootstrap_intervals(TARGETS, GUESSES, CLASSES)
    table = score_table(METRICS, intervals, constant_floor(TARGETS, CLASSES))
    header, _, first, second = table.splitlines()[:4]
    assert header.split("  ")[-1].strip() == "always sad"
    assert first.split()[1] == "83.3" and first.split()[-1] == "50.0" and "–" in first
    assert second.split()[0] == "WA" and second.split()[-1] == "75.0"
    assert "over speakers" not in header
    speakers = bootstrap_intervals(TARGETS, GUESSES, CLASSES, groups=["a", "b", "a", "b"])
    assert "over speakers" in score_table(METRICS, intervals, speaker_intervals=speakers)


def test_class_and_group_tables_have_a_row_each():
    assert class_table(METRICS).splitlines()[3].split() == ["sad", "100.0", "66.7", "80.0", "3"]
    rows = [
        {"label": t, "predicted": g, "speaker": s}
        for t, g, s in zip(TARGETS, GUESSES, "abab", strict=True)
    ]
    table = group_table("speaker", grouped(rows, "speaker", CLASSES)).splitlines()
    assert table[0].split()[0] == "speaker" and len(table) == 4
    assert table[2].split()[:3] == ["a", "100.0", "100.0"]


def test_fold_table_adds_mean_deviation_and_all_items():
    other = classification_metrics(TARGETS, TARGETS, CLASSES)
    folds = {"f1": METRICS, "f2": other}
    table = fold_table(folds, pooled=METRICS, extra={"f1": "x", "f2": "y"}, extra_title="chosen")
    lines = table.splitlines()
    assert lines[0].split()[0] == "fold" and lines[0].endswith("chosen")
    assert lines[2].endswith("x") and lines[4].startswith("mean ± sd") and "91.7 ± 11.8" in lines[4]
    assert lines[5].startswith("all items")
    means = mean_and_deviation(folds.values())
    assert means["wa"]["mean"] == pytest.approx(0.875)
    assert means["wa"]["sd"] == pytest.approx(0.125 * 2**0.5)
    assert "mean" not in fold_table({"f1": METRICS})
    assert mean_and_deviation([METRICS])["ua"]["sd"] == 0


def test_page_holds_notes_sections_and_picture(tmp_path):
    page = markdown_report("T", sections={"A": "x"}, notes=["careful"], picture="c.png")
    assert page == "# T\n\n- careful\n\n## A\n\n```\nx\n```\n\n![confusion matrix](c.png)\n"
    path = write_text(tmp_path / "deep" / "a.md", page)
    assert path.read_text("utf-8") == page and list(path.parent.iterdir()) == [path]
