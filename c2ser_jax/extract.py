"""Writes a model's features for a list of audio: `python -m c2ser_jax.extract --help`."""

import argparse
import sys

from c2ser_jax.errors import UserError, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m c2ser_jax.extract",
        description="Features of a list of audio: OUT/<id>.npy, OUT/index.jsonl, OUT/errors.jsonl.",
        epilog="Exit code 0: all succeeded; 1: some failed, see errors.jsonl; 2: wrong usage.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="model directory")
    add(
        "--input", required=True, nargs="+", metavar="LIST",
        help="wav.scp, jsonl, csv, a folder, or audio files",
    )  # fmt: skip
    add("--output", required=True, metavar="DIR", help="folder for the features")
    add("--root", metavar="DIR", help="where the list's relative paths start")
    add("--granularity", choices=("frame", "utterance", "tokens"), default="frame")
    add(
        "--utterance-tokens", choices=("model", "published"), default="model",
        help="tokens: the model's own, or the first ten frames as upstream's script slices them",
    )  # fmt: skip
    add("--layer", type=int, metavar="N", help="features behind main block N instead of the last")
    add("--batch-seconds", type=float, metavar="S", help="audio per batch (CPU 32, GPU 240)")
    add("--window-seconds", type=float, default=30.0, metavar="S", help="longer audio is windowed")
    add("--dtype", choices=("float32", "bfloat16"), help="what to compute in")
    add("--resume", action="store_true", help="continue an interrupted run")
    add("--no-progress", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parses, loads, extracts; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    # After parsing, so that --help and a typo answer at once.
    from tqdm import tqdm

    from c2ser_jax.data.manifest import read_manifest
    from c2ser_jax.extraction.clips import Clip
    from c2ser_jax.extraction.features import extract_features
    from c2ser_jax.extraction.store import Advice, FeatureStore, file_stem
    from c2ser_jax.inference import fingerprint, load

    if arguments.utterance_tokens != "model" and arguments.granularity != "tokens":
        raise UserError("--utterance-tokens only means something with --granularity tokens")
    utterances = read_manifest(arguments.input, root=arguments.root)
    for utterance in utterances:
        file_stem(utterance.id)
    model = load(
        arguments.checkpoint,
        dtype=arguments.dtype,
        batch_seconds=arguments.batch_seconds,
        window_seconds=arguments.window_seconds,
        log=lambda line: tqdm.write(line, file=sys.stderr),
    )
    model.require_features(arguments.granularity, arguments.layer)
    settings = {
        "checkpoint": fingerprint(arguments.checkpoint),
        "granularity": arguments.granularity,
        "utterance_tokens": arguments.utterance_tokens,
        "layer": arguments.layer,
        "window_seconds": arguments.window_seconds,
        "dtype": model.config.dtype,
    }
    hidden = arguments.no_progress or not sys.stderr.isatty()
    advice = Advice("give another --output", "run the command again with --resume")
    with FeatureStore(arguments.output, settings, resume=arguments.resume, advice=advice) as store:
        todo = [Clip.of(u) for u in utterances if not store.finished(u.id, u.path)]
        bar = tqdm(total=len(todo), unit="file", disable=hidden, file=sys.stderr)
        failed = extract_features(
            model.engine, todo, store,
            granularity=arguments.granularity,
            token_form=arguments.utterance_tokens,
            layer=arguments.layer,
            progress=lambda clip: bar.update(),
        )  # fmt: skip
        bar.close()
        store.close([utterance.id for utterance in utterances])
    done = len(todo) - failed
    before = f", {len(utterances) - len(todo)} were there before" if arguments.resume else ""
    print(f"{done} extracted, {failed} failed{before}: {arguments.output}")
    if failed:
        print(f"the failed ones are in {arguments.output}/errors.jsonl", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
