"""Averages of what the steps report, between two rows of the log."""

import time
from collections.abc import Mapping
from typing import Any

import jax


class Window:
    """Reports of the steps since the last row; they stay on the device until `row` is asked for."""

    def __init__(self) -> None:
        self._reports: list[Any] = []
        self._begun = time.perf_counter()
        self._compile_seconds = 0.0

    def add(self, report: Any) -> None:
        """Keeps one step's report (device arrays)."""
        self._reports.append(report)

    def row(self, compile_seconds: float) -> dict[str, float]:
        """Returns the averages and rates since the last call, and begins a new window.

        `compile_seconds` is the total since the start; the rates leave compile time out.
        """
        reports = jax.device_get(self._reports)
        now = time.perf_counter()
        compiling = compile_seconds - self._compile_seconds
        seconds = max(now - self._begun - compiling, 1e-9)
        row: dict[str, float] = {}
        if reports:
            row["loss"] = sum(float(r["loss"]) for r in reports) / len(reports)
            row.update(mean_pairs([{**r["terms"], **r["metrics"]} for r in reports]))
            row["learning_rate"] = float(reports[-1]["learning_rate"])
            row["gradient_norm"] = sum(float(r["gradient_norm"]) for r in reports) / len(reports)
            if "audio_seconds" in reports[-1]:
                row["audio_seconds_per_second"] = (
                    sum(float(r["audio_seconds"]) for r in reports) / seconds
                )
            row["steps_per_second"] = len(reports) / seconds
        row["seconds"] = seconds
        row["compile_seconds"] = compiling
        self._reports = []
        self._compile_seconds = compile_seconds
        self.restart()
        return row

    def restart(self) -> None:
        """Begins to measure time anew."""
        self._begun = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Leaves out `seconds` that were no training, such as an evaluation."""
        self._begun += seconds


def mean_pairs(pairs: list[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Returns {name: Σ sum / Σ count} of many {name: (sum, count)}, without the never counted."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for one in pairs:
        for name, (total, count) in one.items():
            sums[name] = sums.get(name, 0.0) + float(total)
            counts[name] = counts.get(name, 0.0) + float(count)
    return {name: sums[name] / counts[name] for name in sums if counts[name] > 0}
