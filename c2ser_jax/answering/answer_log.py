"""The answers of an evaluation, a line each as they come, so that a run can be stopped and go on.

DIR/predictions.jsonl  one row per utterance and condition; appended, and written whole at the end
DIR/evaluation.json    the settings, so that nothing else is mixed into the folder
DIR/times.json         seconds and utterances by condition
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from c2ser_jax.data.files import TEXT, read_rows, unwritable, write_text
from c2ser_jax.errors import UserError
from c2ser_jax.training.resume import differences

PREDICTIONS, SETTINGS, TIMES = "predictions.jsonl", "evaluation.json", "times.json"
Row = dict[str, Any]


class AnswerLog:
    """Rows by condition and id, kept on the disk; a row with "error" counts as not answered."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]):
        """Opens a folder; `settings` is JSON that must equal an earlier run's to go on with it.

        Raises:
          UserError: the folder holds the evaluation of something else, predictions of another
            command, or cannot be written.
        """
        self.directory = directory
        self._rows: dict[tuple[str, str], Row] = {}
        self.times: dict[str, dict[str, float]] = {}
        self._file: TextIO | None = None
        given: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        path = directory / SETTINGS
        if path.exists():
            self._check(path, given)
            if (directory / TIMES).exists():
                self.times = _json(directory / TIMES)
            rows = read_rows(directory / PREDICTIONS)
            self._rows = {
                (row["condition"], row["id"]): row
                for row in rows
                if {"condition", "id"} <= set(row)
            }
        elif (directory / PREDICTIONS).exists():
            raise UserError(
                f"{directory / PREDICTIONS} is of another command, since no {SETTINGS} lies beside "
                "it; give another --output, or remove it"
            )
        write_text(path, json.dumps(given, indent=1, ensure_ascii=False) + "\n")
        write_text(directory / PREDICTIONS, _lines(self._rows.values()))  # mends a cut-off line
        try:
            self._file = open(directory / PREDICTIONS, "a", buffering=1, **TEXT)
        except OSError as error:
            raise unwritable(directory / PREDICTIONS, error) from error

    def _check(self, path: Path, settings: dict[str, Any]) -> None:
        before = _json(path)
        for key, value in settings.items():
            if before.get(key) != value:
                which = differences({key: before.get(key)}, {key: value})
                raise UserError(
                    f"{path.parent} holds an evaluation with another {key}"
                    f"{f' ({which})' if which else ''}; give another --output, or remove it to "
                    "begin anew"
                )

    def answered(self, condition: str, name: str) -> bool:
        """Whether a condition has an answer about an utterance."""
        return "error" not in self._rows.get((condition, name), {"error": ""})

    def add(self, condition: str, row: Mapping[str, Any]) -> None:
        """Appends a row, which has an `id`; a later one takes the place of an earlier one."""
        assert self._file is not None
        whole = {"condition": condition, **row}
        self._rows[condition, whole["id"]] = whole
        self._file.write(_lines([whole]))

    def add_time(self, condition: str, clips: int, seconds: float, compiling: float) -> None:
        """Adds up what asking took, compiling apart."""
        before = self.times.get(condition, {})
        now = {"clips": clips, "seconds": seconds, "compiling_seconds": compiling}
        if clips:
            self.times[condition] = {k: before.get(k, 0) + value for k, value in now.items()}
            write_text(self.directory / TIMES, json.dumps(self.times, indent=1) + "\n")

    def rows(self, condition: str) -> list[Row]:
        """The answers under a condition, by id; failures are left out."""
        found = [r for (name, _), r in self._rows.items() if name == condition and "error" not in r]
        return sorted(found, key=lambda row: row["id"])

    def failures(self, conditions: Collection[str]) -> list[Row]:
        """What could not be heard under some conditions, one row per utterance."""
        bad = {
            name: row
            for (condition, name), row in self._rows.items()
            if "error" in row and condition in conditions
        }
        return [
            {k: bad[name][k] for k in ("id", "path", "reason", "error")} for name in sorted(bad)
        ]

    def close(self) -> None:
        """Closes the file; what was added is there."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, rows: Sequence[Row]) -> None:
        """Writes all rows whole, in the order given, and closes the log."""
        self.close()
        write_text(self.directory / PREDICTIONS, _lines(rows))

    def all(self) -> list[Row]:
        """Every row, by condition in their order of coming, then by id."""
        order = {name: place for place, name in enumerate(dict.fromkeys(n for n, _ in self._rows))}
        return [self._rows[k] for k in sorted(self._rows, key=lambda k: (order[k[0]], k[1]))]


def _json(path: Path) -> dict[str, Any]:
    """The table in a file; an empty one where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
