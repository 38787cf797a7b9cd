"""What a run writes while it trains: metrics.jsonl, optional TensorBoard, progress, messages."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from c2ser_jax.errors import UserError


class MetricsWriter:
    """Appends rows to DIR/metrics.jsonl and shows progress; nothing of it unless `active`.

    Rows after `start_step`, left by a run that was killed and now goes on from there, are dropped,
    and evaluations at it, which are done again, so the curves have each step once. `history` holds
    all rows, of earlier starts too.
    """

    def __init__(
        self,
        directory: Path,
        *,
        start_step: int,
        total_steps: int,
        progress: bool | None = None,
        tensorboard: bool = False,
        active: bool = True,
    ):
        self.history: list[dict[str, Any]] = []
        self._active = active
        self._file: Any = None
        self._bar: Any = None
        self._board: Any = None
        if not active:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._board = _open_tensorboard(directory)
        path = directory / "metrics.jsonl"
        self.history = _keep_rows(path, start_step)
        self._file = open(path, "a", encoding="utf-8")
        shown = sys.stderr.isatty() if progress is None else progress and sys.stderr.isatty()
        if shown:
            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", file=sys.stderr)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one row {"kind", "step", values…} and, without a bar, prints it."""
        row = {"kind": kind, "step": step, **{k: _number(v) for k, v in values.items()}}
        self.history.append(row)
        if not self._active:
            return
        try:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self._file.name}: {error.strerror}: make room there and start the "
                "same command again"
            ) from error
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float | int) and name != "step":
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        if self._bar is None:
            print(f"{kind} step {step}  {shown}", file=sys.stderr)
        elif kind == "train":
            self._bar.set_postfix_str(f"loss {row.get('loss') or math.nan:.4g}", refresh=False)
        else:
            self.say(f"{kind} step {step}  {shown}")

    def advance(self, steps: int = 1) -> None:
        """Moves the progress bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def say(self, text: str) -> None:
        """Prints one line to stderr without breaking the bar."""
        if self._bar is not None:
            tqdm.write(text, file=sys.stderr)
        elif self._active:
            print(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes and closes everything; safe to call twice."""
        for part in (self._bar, self._board, self._file):
            if part is not None:
                part.close()
        self._bar = self._board = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _keep_rows(path: Path, start_step: int) -> list[dict[str, Any]]:
    rows = [
        row
        for row in read_metrics(path)
        if row["step"] < start_step or (row["step"] == start_step and row["kind"] == "train")
    ]
    if path.exists():
        temporary = path.with_suffix(".jsonl.tmp")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    return rows


def _number(value: Any) -> Any:
    if isinstance(value, str | bool) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _open_tensorboard(directory: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "TensorBoard logging needs the extra: pip install 'c2ser_jax[tracking]'"
        ) from error
    return SummaryWriter(str(directory / "tensorboard"))
