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

WORDS = ("rate", "pitch", "loudness", "transcript", "rationale")
"""What written answers say beside the label."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m c2ser_jax.predict",
        description="Label and all probabilities for each audio file; a C2SER model also writes "
        "what it hears: transcript, speaking style, rationale.",
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
    speech = parser.add_argument_group("C2SER models")
    add = speech.add_argument
    add(
        "--mode", default="labels", metavar="MODE",
        help="labels: score every label (default); implicit: write a short answer; explicit: write "
        "transcript, style and reasons first",
    )  # fmt: skip
    add(
        "--language", default="auto", metavar="LANGUAGE",
        help="of prompt and answer: en, zh, or auto: a list's own language, else English",
    )  # fmt: skip
    add(
        "--decoding", default="published", metavar="RULE",
        help="how answers are written: published (default), greedy, beam or sample",
    )  # fmt: skip
    add("--labels", metavar="A,B,…", help="the label set, instead of the model's own")
    add("--max-new-tokens", type=int, metavar="N", help="longest written answer")
    add("--constrained", action="store_true", help="written answers always name a known label")
    add("--prior", action="store_true", help="take off the scores that labels have for silence")
    add(
        "--long-audio", default="windows", metavar="RULE",
        help="audio longer than the model hears at once: windows (default) or refuse",
    )  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of --decoding sample")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, predicts, prints; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.timeline is not None and not arguments.timeline > 0:
        raise UserError(f"--timeline {arguments.timeline} must be a positive number of seconds")
    # After parsing, so that --help and a typo answer at once.
    from c2ser_jax.extraction.clips import Failure

    clips, written = list(collect_clips(arguments.files)), arguments.mode != "labels"
    labels, results = answer_clips(arguments, clips)
    rows: list[dict[str, Any]] = [{}] * len(clips)
    for index, result in results:
        if isinstance(result, Failure):
            rows[index] = {
                "file": clips[index].path,
                "id": clips[index].id,
                "reason": result.reason,
                "error": result.message,
            }
        else:
            rows[index] = {"file": clips[index].path, **result.as_row()}
    words = WORDS if written else ()
    bare = any(row.get("text") and not any(row.get(word) for word in WORDS) for row in rows)
    if bare and arguments.format == "table":
        words = (*WORDS, "text")  # of an answer that gives none of these
    write_rows(rows, labels, arguments.format, sys.stdout, words=words)
    return 1 if any("error" in row for row in rows) else 0


def answer_clips(
    arguments: argparse.Namespace, clips: "Sequence[Clip]"
) -> tuple[list[str], Iterator[tuple[int, Any]]]:
    """(the model's labels, (place, prediction, answer or failure) of each clip as they come).

    Raises:
      UserError: the model directory cannot be used, or cannot be asked like that.
    """
    from c2ser_jax.answering.ask import Ask, make_ask
    from c2ser_jax.inference import SPEECH_KIND, load
    from c2ser_jax.training.checkpoint import read_description

    given = vars(arguments)
    ask = make_ask(**{name: given[name] for name in Ask.__dataclass_fields__ if name in given})
    log = (lambda line: print(line, file=sys.stderr)) if sys.stderr.isatty() else None
    options: dict[str, Any] = dict(
        dtype=arguments.dtype, batch_seconds=arguments.batch_seconds, log=log
    )
    kind = read_description(arguments.checkpoint).kind
    if kind == SPEECH_KIND:
        labels = [x.strip() for x in arguments.labels.split(",")] if arguments.labels else None
        model = load(
            arguments.checkpoint, window_seconds=arguments.timeline, labels=labels, **options
        )
        return model.used_labels, model.stream(clips, ask)
    if ask != Ask() or arguments.labels:
        raise UserError(
            f"{arguments.checkpoint} holds a model of kind {kind!r}, which predicts labels and "
            "writes nothing: leave the options of C2SER models out"
        )
    model = load(arguments.checkpoint, **options)
    model.require_head()
    return model.used_labels, model.stream(clips, timeline_seconds=arguments.timeline)


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


def write_rows(
    rows: list[dict[str, Any]], labels: list[str], form: str, stream: IO[str],
    *, words: Sequence[str] = (),
) -> None:  # fmt: skip
    """Prints rows as "table", "json", "jsonl" or "csv"; a row has "probabilities" or "error".

    words: keys of a row that tables show beside its label.
    """
    if form == "json":
        print(json.dumps(rows, ensure_ascii=False, indent=1), file=stream)
    elif form == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), file=stream)
    elif form == "csv":
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "id", "start", "end", "label", *labels, *words, "error"])
        for row in rows:
            for start, end, found in _spans(row):
                scores = found.get("probabilities", {})
                cells = [f"{scores[name]:.6f}" if scores else "" for name in labels]
                label = "" if "error" in row else found["label"] or "none"
                head = [row["file"], row["id"], start, end, label]
                said = [found.get(name, "") for name in words]
                writer.writerow([*head, *cells, *said, row.get("error", "")])
    else:
        _write_table(rows, labels, stream, words)


def _spans(row: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(start, end, prediction): the whole file, then its sections; empty times for an error."""
    end = f"{row['seconds']:.2f}" if "seconds" in row else ""
    yield "0.00" if end else "", end, row
    for section in row.get("timeline", row.get("windows", [])):
        yield f"{section['start']:.2f}", f"{section['end']:.2f}", section


def _write_table(
    rows: list[dict[str, Any]], labels: list[str], stream: IO[str], words: Sequence[str]
) -> None:
    cells = [["file", "start", "end", "label", *labels, *words]]
    errors = {}
    for row in rows:
        for place, (start, end, found) in enumerate(_spans(row)):
            name = row["file"] if place == 0 else ""
            if "error" in row:
                errors[len(cells)] = f"error: {row['error']}"
                cells.append([name])
            else:
                scores = [f"{found['probabilities'][label]:.3f}" for label in labels]
                said = [" ".join(str(found.get(word, "")).split()) for word in words]
                cells.append([name, start, end, found["label"] or "none", *scores, *said])
    width = [max(len(line[i]) for line in cells if i < len(line)) for i in range(len(cells[0]))]
    for number, line in enumerate(cells):
        text = [cell.ljust(width[i]) for i, cell in enumerate(line)]
        print("  ".join([*text, errors.get(number, "")]).rstrip(), file=stream)


if __name__ == "__main__":
    run_command(main)
