"""Text tables of scores, and the folder of files that an evaluation leaves behind.

Scores are fractions in the data and per cent in the text. Every writer replaces a file whole.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.data.files import write_text
from c2ser_jax.evaluation.plots import confusion_picture

TITLES = {"ua": "UA", "wa": "WA", "macro_f1": "macro F1", "wf1": "WF1", "micro_f1": "micro F1"}
SHOWN = ("ua", "wa", "macro_f1", "wf1")


def percent(value: float) -> str:
    """0.7123 -> "71.2"."""
    return f"{100 * value:.1f}"


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns under a header: the first to the left, the rest to the right."""
    lines = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def show(line):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([show(lines[0]), rule, *map(show, lines[1:])])


def score_table(
    metrics: Mapping[str, Any],
    intervals: Mapping[str, Mapping[str, float]] | None = None,
    floor: Mapping[str, Any] | None = None,
    *,
    speaker_intervals: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """One row per metric: per cent, then 95 % intervals and the best constant answer, if given."""

    def interval(found):
        return f"{percent(found['low'])} – {percent(found['high'])}" if found else ""

    columns = [("score", {name: percent(metrics[name]) for name in SHOWN})]
    for title, given in (("95 % over items", intervals), ("over speakers", speaker_intervals)):
        if given:
            columns.append((title, {name: interval(given.get(name)) for name in SHOWN}))
    if floor:
        columns.append((f"always {floor['label']}", {n: percent(floor[n]) for n in SHOWN}))
    rows = [[TITLES[name], *(cells[name] for _, cells in columns)] for name in SHOWN]
    return text_table(["%", *(title for title, _ in columns)], rows)


def class_table(metrics: Mapping[str, Any]) -> str:
    """One row per class of `classification_metrics`: precision, recall, F1 and counts."""
    rows = [
        [name, *(percent(row[k]) for k in ("precision", "recall", "f1")), row["support"]]
        for name, row in metrics["per_class"].items()
    ]
    return text_table(["class", "precision", "recall", "F1", "items"], rows)


def row_name(name: str, scores: Mapping[str, Any]) -> str:
    """The name of scores, which tells those of a part of the list."""
    return f"{name} (part of the list)" if scores.get("part") else name


def group_table(by: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per group of `grouped`, such as each speaker."""
    rows = [
        [row_name(name, scores), *(percent(scores[k]) for k in SHOWN), scores["num"]]
        for name, scores in groups.items()
    ]
    return text_table([by, *(TITLES[k] for k in SHOWN), "items"], rows)


def mean_and_deviation(folds: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{metric: {"mean", "sd"}} over folds; sd is the sample deviation, 0 for a single fold."""
    scores = list(folds)
    result = {}
    for name in SHOWN:
        values = np.array([fold[name] for fold in scores])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        result[name] = {"mean": float(values.mean()), "sd": spread}
    return result


def fold_table(
    folds: Mapping[str, Mapping[str, Any]],
    *,
    pooled: Mapping[str, Any] | None = None,
    extra: Mapping[str, str] | None = None,
    extra_title: str = "",
) -> str:
    """Folds x metrics in per cent, then mean ± sd, then all folds' items scored as one set.

    `extra` {fold: text} adds a column, such as the setting that was chosen.
    """
    extra = extra or {}
    tail = [extra_title] if extra else []
    header = ["fold", *(TITLES[k] for k in SHOWN), "items", *tail]
    rows = [
        [
            name,
            *(percent(scores[k]) for k in SHOWN),
            scores["num"],
            *([extra.get(name, "")] if extra else []),
        ]
        for name, scores in folds.items()
    ]
    blank = [""] * len(tail)
    if len(folds) > 1:
        means = mean_and_deviation(folds.values())
        cells = [f"{percent(means[k]['mean'])} ± {percent(means[k]['sd'])}" for k in SHOWN]
        rows.append(["mean ± sd", *cells, "", *blank])
    if pooled is not None:
        rows.append(["all items", *(percent(pooled[k]) for k in SHOWN), pooled["num"], *blank])
    return text_table(header, rows)


def markdown_report(
    title: str,
    *,
    sections: Mapping[str, str],
    notes: Iterable[str] = (),
    picture: str | None = None,
) -> str:
    """A page: the notes as a list, then every section's table as preformatted text."""
    parts = [f"# {title}", *(["\n".join(f"- {note}" for note in notes)] if notes else [])]
    for name, body in sections.items():
        parts.append(f"## {name}\n\n```\n{body}\n```")
    if picture:
        parts.append(f"![confusion matrix]({picture})")
    return "\n\n".join(part for part in parts if part) + "\n"


def write_report(
    directory: Path | str,
    *,
    title: str,
    summary: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    sections: Mapping[str, str],
    notes: Sequence[str] = (),
) -> dict[str, Path]:
    """Writes metrics.json, predictions.jsonl, confusion.png and report.md into `directory`.

    `summary` becomes metrics.json and holds the `confusion` and `classes` that are drawn; `rows`
    are one JSON object per scored item. Returns {file name: path}; raises `UserError` when one of
    them cannot be written.
    """
    directory = Path(directory)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    page = markdown_report(title, sections=sections, notes=notes, picture="confusion.png")
    written = [
        write_text(directory / "predictions.jsonl", lines),
        confusion_picture(
            summary["confusion"], summary["classes"], directory / "confusion.png", title=title
        ),
        write_text(directory / "report.md", page),
        write_text(
            directory / "metrics.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
        ),
    ]
    return {path.name: path for path in written}
