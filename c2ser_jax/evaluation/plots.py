"""Pictures of results: the confusion matrix and the curves of a training run, as PNG files.

Drawn on figures of their own (no pyplot), so nothing depends on a display or on global state.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.data.files import read_rows, replacing
from c2ser_jax.errors import UserError

_INK, _MUTED, _GRID = "#1f2430", "#6b7280", "#e5e7eb"
_LINES = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_TERMS = ("frame", "utterance", "category", "classification")
_SCORES = ("wa", "ua", "wf1", "macro_f1", "micro_f1", "accuracy")


def _figure(width: float, height: float):
    """A canvas in inches that draws with Agg whatever backend is set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: Path | str) -> Path:
    with replacing(path) as part, warnings.catch_warnings():
        # a name in a script the font lacks is drawn as boxes; the picture is still worth having
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(part, format="png")
    return Path(path)


def _literal(text: str) -> str:
    """Text as it is: matplotlib would read a pair of dollar signs as a formula."""
    return str(text).replace("$", r"\$")


def confusion_picture(
    confusion: Sequence[Sequence[int]] | np.ndarray,
    classes: Sequence[str],
    path: Path | str,
    *,
    title: str = "",
) -> Path:
    """Draws counts int[C, C] (rows targets, columns predictions) with their share of the row.

    The shade is the share of the row, so rare classes read as well as frequent ones; a class
    without targets has an empty row. Returns the path written.
    """
    counts = np.asarray(confusion)
    size = len(classes)
    if counts.shape != (size, size):
        raise UserError(
            f"a confusion matrix of {size} classes must be {size} x {size}, not {counts.shape}"
        )
    support = counts.sum(axis=1)
    share = counts / np.maximum(support, 1)[:, None]
    side = max(3.2, 0.78 * size + 1.6)
    figure = _figure(side + 1.1, side + 0.3)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(size, size):
        if not support[row]:
            continue
        color = "white" if share[row, column] > 0.55 else _INK
        if not counts[row, column]:
            axes.text(column, row, "·", ha="center", va="center", color=_MUTED, fontsize=9)
            continue
        axes.text(
            column,
            row - 0.12,
            f"{counts[row, column]}",
            ha="center",
            va="center",
            color=color,
            fontsize=10,
            fontweight="bold" if row == column else "normal",
        )
        axes.text(
            column,
            row + 0.24,
            f"{100 * share[row, column]:.0f} %",
            ha="center",
            va="center",
            color=color,
            fontsize=7,
        )
    names = [_literal(name) for name in classes]
    axes.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), [f"{name} ({n})" for name, n in zip(names, support, strict=True)])
    axes.set_xlabel("predicted", color=_MUTED)
    axes.set_ylabel("true (number of items)", color=_MUTED)
    axes.set_title(_literal(title), color=_INK, fontsize=11, pad=10)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, colors=_INK, labelsize=9)
    axes.spines[:].set_visible(False)
    return _save(figure, path)


def read_curves(records: Path | str | Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Collects {name: float64[points, 2]} of (step, value) from metrics.jsonl or its records.

    Every finite number of a record that has a `step` is a point; nested mappings give names joined
    with "/", and a row's `kind` goes in front unless it is "train". A last line cut off by an
    interrupted run is left out.

    Raises:
        UserError: the file is missing or a line before its last is not JSON.
    """
    if isinstance(records, (str, Path)):
        path = Path(records)
        if not path.is_file():
            raise UserError(f"{path} does not exist: give the metrics.jsonl of a training run")
        records = read_rows(path, strict=True)
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if not isinstance(record.get("step"), (int, float)):
            continue
        kind = record.get("kind", "train")
        for name, value in _numbers(record, "" if kind == "train" else f"{kind}/"):
            if name.rsplit("/", 1)[-1] != "step":
                points.setdefault(name, []).append((float(record["step"]), value))
    return {name: np.asarray(rows) for name, rows in points.items()}


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value):
            yield f"{prefix}{name}", float(value)


def _panels(curves: Mapping[str, np.ndarray]) -> list[tuple[str, list[str]]]:
    """Which curves share a panel: loss terms, scores, then the learning rate."""
    last = {name: name.rsplit("/", 1)[-1].lower() for name in curves}
    panels = [
        ("loss", [n for n in curves if _is_loss(n)]),
        ("score", [n for n in curves if last[n] in _SCORES]),
        ("learning rate", [n for n in curves if last[n] == "learning_rate"]),
    ]
    return [(title, names) for title, names in panels if names]


def _is_loss(name: str) -> bool:
    last = name.rsplit("/", 1)[-1].lower()
    return "loss" in last or last in _TERMS


def curves_picture(
    records: Path | str | Iterable[Mapping[str, Any]],
    path: Path | str,
    *,
    title: str = "",
    panels: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Draws training curves over steps from `metrics.jsonl` (a path, or its records).

    By default one panel for the loss and its terms, one for scores (wa, ua, ...), one for the
    learning rate; `panels` {title: names} chooses otherwise. A run too short to have logged gives
    an empty picture that says so. Losses of long runs are drawn pale
    with their running mean on top. Returns the path written.

    Raises:
        UserError: no such file, or none of the names in `panels` is in it.
    """
    curves = read_curves(records)
    chosen = (
        [(t, [n for n in names if n in curves]) for t, names in panels.items()]
        if panels
        else _panels(curves)
    )
    chosen = [(panel, names) for panel, names in chosen if names]
    if panels and not chosen:
        raise UserError(
            f"there is no curve to draw for {path}: found the names {sorted(curves) or 'none'}"
        )
    figure = _figure(5.2 * max(1, len(chosen)) + 0.4, 3.9)
    if not chosen:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", color=_MUTED)
    for position, (panel, names) in enumerate(chosen, 1):
        axes = figure.add_subplot(1, len(chosen), position)
        for index, name in enumerate(names):
            color = _LINES[index % len(_LINES)]
            _draw_curve(axes, curves[name], name, color, smooth=_is_loss(name))
        axes.set_title(panel, color=_INK, fontsize=10, loc="left")
        axes.set_xlabel("step", color=_MUTED)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_GRID)
        axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(_literal(title), color=_INK, fontsize=11)
    return _save(figure, path)


def _draw_curve(axes, points: np.ndarray, name: str, color: str, *, smooth: bool) -> None:
    steps, values = points[:, 0], points[:, 1]
    window = len(values) // 25 if smooth else 0
    if window < 2:
        mark = "o" if len(values) < 20 else ""
        axes.plot(steps, values, color=color, label=_literal(name), marker=mark, markersize=3)
        return
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - window + 1, 0)
    high = np.arange(len(values)) + 1
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, (total[high] - total[low]) / (high - low), color=color, label=_literal(name))
