"""Writes a manifest for a corpus and prints what it holds."""

import argparse
import sys
from collections import Counter

from c2ser_jax.data.corpora.corpus import Prepared
from c2ser_jax.data.corpora.emobox import prepare_emobox
from c2ser_jax.data.corpora.registry import CORPORA, prepare_corpus
from c2ser_jax.data.manifest import Utterance, write_manifest
from c2ser_jax.errors import UserError, run_command


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 when files of the corpus are missing (the manifest holds the rest)."""
    parser = argparse.ArgumentParser(prog="python -m c2ser_jax.data.corpora", description=__doc__)
    parser.add_argument("corpus", choices=[*CORPORA, "emobox"])
    parser.add_argument("--root", required=True, help="folder of the audio")
    parser.add_argument("--output", required=True, help="manifest to write (jsonl)")
    parser.add_argument("--lists", help="emobox only: folder of the set's lists and label map")
    args = parser.parse_args(argv)
    if (args.corpus == "emobox") != (args.lists is not None):
        raise UserError("--lists belongs to emobox, and emobox needs it: the folder of the set")
    if args.corpus == "emobox":
        prepared = prepare_emobox(args.root, args.lists)
        expected = len(prepared.utterances) + len(prepared.foreign)
    else:
        prepared, expected = prepare_corpus(args.corpus, args.root), CORPORA[args.corpus].files
    write_manifest(args.output, prepared.utterances)
    return report(args.corpus, prepared, expected, args.output)


def report(name: str, prepared: Prepared, expected: int, output: str) -> int:
    """Prints the table of speakers and labels and what was left out; returns the exit code."""
    rows = prepared.utterances
    print(f"{name}: {len(rows)} of {expected} utterances -> {output}")
    print(table(rows))
    if prepared.repeated:
        print(f"left out {len(prepared.repeated)} repeated copies, such as {prepared.repeated[0]}")
    if prepared.foreign:
        word = "not found" if name == "emobox" else "not of this corpus"
        print(f"left out {len(prepared.foreign)} files {word}, such as {prepared.foreign[0]}")
    if len(rows) < expected:
        print(f"warning: {expected - len(rows)} utterances are missing", file=sys.stderr)
        return 1
    return 0


def table(rows: list[Utterance]) -> str:
    """Utterances per speaker (rows) and label (columns), with sums; many speakers are summed up."""
    labels = sorted({row.label or "-" for row in rows})
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.speaker or "-", Counter())[row.label or "-"] += 1
    speakers = sorted(counts)
    lines = [["speaker", *labels, "all"]]
    if len(speakers) <= 30:
        for speaker in speakers:
            own = counts[speaker]
            numbers = [own[label] for label in labels]
            lines.append([speaker, *map(str, numbers), str(sum(numbers))])
    total = Counter(row.label or "-" for row in rows)
    numbers = [total[label] for label in labels]
    lines.append([f"{len(speakers)} speakers", *map(str, numbers), str(len(rows))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


if __name__ == "__main__":
    run_command(main)
