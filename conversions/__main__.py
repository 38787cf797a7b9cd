"""The command line of conversions.

python -m conversions emotion2vec --from SRC [--config F] [--tokens F] --to DIR
python -m conversions whisper --from SRC [--config F] --to DIR
python -m conversions qwen2 --from HF_DIR [--lora PEFT_DIR] --to DIR
python -m conversions c2ser --from C2SER_llm.pt --llm QWEN2_DIR --emotion2vec E2VS.pt
    [--config config.yaml] [--lora keep|merge] --to DIR
python -m conversions export FAMILY --from DIR --to FILE
python -m conversions verify FAMILY --from SRC [--llm QWEN2_DIR] [--emotion2vec E2VS.pt] --to DIR
"""

import argparse
import os
import sys
from pathlib import Path

from c2ser_jax.errors import UserError, run_command
from c2ser_jax.training.checkpoint import write_model
from conversions import (
    c2ser_export,
    c2ser_import,
    emotion2vec_import,
    export,
    qwen2_export,
    qwen2_import,
    verify,
    whisper,
    whisper_export,
)
from conversions.emotion2vec_import import Options
from conversions.engine import elements
from conversions.model_folder import open_source
from conversions.reader import Checkpoint, open_checkpoint

PREPARE = {
    "emotion2vec": emotion2vec_import.prepare,
    "whisper": whisper.prepare,
    "qwen2": qwen2_import.prepare,
    "c2ser": c2ser_import.prepare,
}
EXPORT = {
    "emotion2vec": export.export,
    "whisper": whisper_export.export,
    "qwen2": qwen2_export.export,
    "c2ser": c2ser_export.export,
}
FAMILIES = tuple(PREPARE)
_BELONGS = {
    "tokens": ("emotion2vec",),
    "normalize_waveform": ("emotion2vec", "c2ser"),
    "lora": ("qwen2", "c2ser"),
    "llm": ("c2ser",),
    "emotion2vec": ("c2ser",),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; raises `UserError` for bad input."""
    # Conversions are bound by the disk: an accelerator would only be started in vain.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["export"]:
        return _export(arguments[1:])
    if arguments[:1] == ["verify"]:
        return _verify(arguments[1:])
    return _convert(arguments)


def _convert(arguments: list[str]) -> int:
    parser = _parser("", "converts a published checkpoint into a model directory")
    _paths(
        parser,
        "checkpoint file (.pt, .safetensors); for qwen2, and for whisper if you like, a folder",
        "model directory to create",
    )
    parser.add_argument("--config", type=Path, help="config.yaml or config.json of the model")
    parser.add_argument("--tokens", type=Path, help="tokens.txt, one label per line")
    parser.add_argument(
        "--normalize-waveform",
        choices=("true", "false"),
        help="whether waveforms are normalised before the model (default: the source's own rule)",
    )
    parser.add_argument(
        "--lora",
        help="for qwen2: peft folder with an adapter; for c2ser: keep (default) or merge",
    )
    _other_sources(parser)
    parser.add_argument("--licence", help="licence of the weights, kept in the model directory")
    options = parser.parse_args(arguments)
    source, target = options.source, options.target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty directory; give another --to")
    wanted = _wanted(options)
    prepared = PREPARE[options.family](_open(options.family, source), wanted)
    write_model(
        target,
        prepared.description,
        prepared.plan.leaves(),
        carried=prepared.carrier.leaves(),
        tokenizer=prepared.tokenizer,
    )
    notes = prepared.description.origin["notes"]
    print(
        f"{target}: {prepared.description.kind}, {elements(prepared.plan.shapes):,} parameters in "
        f"{len(prepared.plan.shapes)} arrays, {len(prepared.carrier.tensors)} other tensors carried"
    )
    for name, note in {"config": prepared.description.origin["config"], **notes}.items():
        print(f"  {name}: {note or 'none'}")
    return 0


def _wanted(options: argparse.Namespace) -> Options:
    """The options for one family; raises `UserError` for those of another."""
    _refuse_foreign(options)
    family, lora = options.family, options.lora
    if family == "c2ser" and lora not in (None, "keep", "merge"):
        raise UserError(f"--lora is {lora!r}: for c2ser say keep or merge")
    normalize = options.normalize_waveform
    return Options(
        config=options.config,
        tokens=options.tokens,
        normalize=None if normalize is None else normalize == "true",
        licence=options.licence,
        lora=Path(lora) if family == "qwen2" and lora else None,
        llm=options.llm,
        acoustic=options.emotion2vec,
        merge=family == "c2ser" and lora == "merge",
    )


def _refuse_foreign(options: argparse.Namespace) -> None:
    """Raises UserError for an option that belongs to other families."""
    for name, families in _BELONGS.items():
        if getattr(options, name, None) is not None and options.family not in families:
            raise UserError(
                f"--{name.replace('_', '-')} belongs to {' and '.join(families)}; leave it out"
            )


def _other_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llm", type=Path, help="for c2ser: the Qwen2's Hugging Face folder")
    parser.add_argument("--emotion2vec", type=Path, help="for c2ser: Emotion2Vec-S's checkpoint")


def _export(arguments: list[str]) -> int:
    parser = _parser("export ", "writes a model directory back in its source's layout")
    _paths(
        parser,
        "model directory",
        "file to create (.pt or .safetensors), or folder where the source was one",
    )
    options = parser.parse_args(arguments)
    print(EXPORT[options.family](options.source, options.target))
    return 0


def _verify(arguments: list[str]) -> int:
    parser = _parser("verify ", "compares a model directory with the checkpoint it came from")
    _paths(parser, "checkpoint file", "model directory made of it")
    parser.add_argument("--seed", type=int, default=0, help="seed of the test waveform")
    _other_sources(parser)
    options = parser.parse_args(arguments)
    _refuse_foreign(options)
    source = _open(options.family, options.source)
    if options.family == "c2ser":
        return c2ser_export.verify(source, options.target, options.llm, options.emotion2vec)
    if options.family == "whisper":
        return whisper_export.verify(source, options.target)
    if options.family == "qwen2":
        return qwen2_export.verify(source, options.target)
    return verify.verify(source, options.target, options.seed)


def _open(family: str, source: Path) -> Checkpoint:
    return open_checkpoint(source) if family == "emotion2vec" else open_source(source)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m conversions {command}".strip(),
        description=description,
        epilog=None if command else "other commands: export FAMILY, verify FAMILY",
        allow_abbrev=False,
    )
    parser.add_argument("family", choices=FAMILIES)
    return parser


def _paths(parser: argparse.ArgumentParser, source: str, target: str) -> None:
    parser.add_argument("--from", dest="source", type=Path, required=True, help=source)
    parser.add_argument("--to", dest="target", type=Path, required=True, help=target)


if __name__ == "__main__":
    run_command(main)
