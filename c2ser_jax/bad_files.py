"""The list of files that a run could not use: WORKDIR/bad_files.jsonl."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from c2ser_jax.data.scanning import BadFile
from c2ser_jax.evaluation.report import write_text
from c2ser_jax.parallel.distributed import gather_bytes

NAME = "bad_files.jsonl"


def add_bad_files(workdir: Path, files: Sequence[BadFile]) -> None:
    """Adds files to the list, each id once; call it on the main process."""
    path = workdir / NAME
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = {row["id"]: row for row in map(json.loads, before)}
    for file in files:
        rows.setdefault(file.id, dataclasses.asdict(file))
    if rows:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows.values()]
        write_text(path, "\n".join(lines) + "\n")


def found_by_all(files: Sequence[BadFile]) -> list[BadFile]:
    """The files that any process of the run found, each id once, the same on every process."""
    payload = json.dumps([dataclasses.asdict(file) for file in files]).encode()
    rows = {row["id"]: row for part in gather_bytes(payload) for row in json.loads(part)}
    return [BadFile(**row) for row in rows.values()]
