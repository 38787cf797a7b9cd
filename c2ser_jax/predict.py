"""Says which emotion is heard in each file: `python -m c2ser_jax.predict --help`."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from c2ser_jax.errors import UserError, run_command

if TYPE_CHECKING:
    from c2ser_jax.extraction.clips import Clip


def build_parser() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m c2ser_jax.predict",
        description="Label and all probabilities for each audio file.",
        epilog="Exit code 0: all succeeded; 1: some failed, each with its own row; 2: wrong usage.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="model directory with an emotion head")
    add("files", nargs="+", metavar="FILE", help="audio files, folders, or lists of them")
    add("--format", choices=("table", "json", "jsonl", "csv"), default="table")
    add(
        "--timeline", type=float, metavar="S",
        help="also predict every section of S seconds, for long audio",
    )  # fmt: skip
    add("--batch-seconds", type=float, metavar="S", help="audio per batch (CPU 32, GPU 240)")
    add("--dtype", choices=("float32", "bfloat16"), help="what to compute in")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, predicts, prints; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.timeline is not None and not arguments.timeline > 0:
        raise UserError(f"--timeline {arguments.timeline} must be a positive number of seconds")
    # After parsing, so that --help and a typo answer at once.
    from c2ser_jax.inference import Prediction, load

    log = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else None
    model = load(
        arguments.checkpoint, dtype=arguments.dtype, batch_seconds=arguments.batch_seconds, log=log
    )
    model.require_head()
    clips = list(collect_clips(arguments.files))
    rows: list[dict[str, Any]] = [{}] * len(clips)
    for index, result in model.stream(clips, timeline_seconds=arguments.timeline):
        if isinstance(result, Prediction):
            rows[index] = {"file": clips[index].path, **result.as_row()}
        else:
            rows[index] = {
                "file": clips[index].path,
                "id": clips[index].id,
                "reason": result.reason,
                "error": result.message,
            }
    write_rows(rows, model.used_labels, arguments.format, sys.stdout)
    return 1 if any("error" in row for row in rows) else 0


def collect_clips(files: Sequence[str]) -> "Iterator[Clip]":
    """A clip per audio file; folders and lists give all of theirs. A missing file stays a clip.

    A list is told by its content, not by its name.

    Raises:
      UserError: a folder or list cannot be read.
    """
    from c2ser_jax.data.manifest import read_manifest
    from c2ser_jax.extraction.clips import Clip

    for name in files:
        if _holds_several(Path(name)):
            yield from map(Clip.of, read_manifest(name))
        else:
            yield Clip.of_file(name)


def _holds_several(path: Path) -> bool:
    """Whether a folder, or a file of text rather than audio, is there."""
    from c2ser_jax.data.manifest import AUDIO_SUFFIXES

    if path.is_dir():
        return True
    if path.suffix.lower() in AUDIO_SUFFIXES or not path.is_file():
        return False
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)


def write_rows(rows: list[dict[str, Any]], labels: list[str], form: str, stream: IO[str]) -> None:
    """Prints rows as "table", "json", "jsonl" or "csv"; a row has "probabilities" or "error"."""
    if form == "json":
        print(json.dumps(rows, ensure_ascii=False, indent=1), file=stream)
    elif form == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), file=stream)
    elif form == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "id", "start", "end", "label", *labels, "error"])
        for row in rows:
            for start, end, found in _spans(row):
                scores = found.get("probabilities", {})
                cells = [f"{scores[name]:.6f}" if scores else "" for name in labels]
                head = [row["file"], row["id"], start, end, found.get("label", "")]
                writer.writerow([*head, *cells, row.get("error", "")])
    else:
        _write_table(rows, labels, stream)


def _spans(row: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(start, end, prediction): the whole file, then its sections; empty times for an error."""
    end = f"{row['seconds']:.2f}" if "seconds" in row else ""
    yield "0.00" if end else "", end, row
    for section in row.get("timeline", []):
        yield f"{section['start']:.2f}", f"{section['end']:.2f}", section


def _write_table(rows: list[dict[str, Any]], labels: list[str], stream: IO[str]) -> None:
    cells = [["file", "start", "end", "label", *labels]]
    errors = {}
    for row in rows:
        for place, (start, end, found) in enumerate(_spans(row)):
            name = row["file"] if place == 0 else ""
            if "error" in row:
                errors[len(cells)] = f"error: {row['error']}"
                cells.append([name])
            else:
                scores = [f"{found['probabilities'][label]:.3f}" for label in labels]
                cells.append([name, start, end, found["label"], *scores])
    width = [max(len(line[i]) for line in cells if i < len(line)) for i in range(len(cells[0]))]
    for number, line in enumerate(cells):
        text = [cell.ljust(width[i]) for i, cell in enumerate(line)]
        print("  ".join([*text, errors.get(number, "")]).rstrip(), file=stream)


if __name__ == "__main__":
    run_command(main)
