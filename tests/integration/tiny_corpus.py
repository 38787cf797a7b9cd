"""Small manifests for runs of `tiny_config`, and the command that runs them."""

import json
from collections.abc import Sequence
from pathlib import Path

from c2ser_jax import train
from tests.tiny_models import voice, write_wav

CONFIG = str(Path(__file__).with_name("tiny_config.py"))


def run(workdir: Path, *overrides: object) -> int:
    """The exit code of `python -m c2ser_jax.train` with the tiny config."""
    arguments = ["--config", CONFIG, "--workdir", workdir, "--no-progress", *overrides]
    return train.main([str(argument) for argument in arguments])


def write_corpus(
    folder: Path, labels: Sequence[str | None], speakers: int = 4, seconds: float = 0.5
) -> Path:
    """A manifest with a recording of every label by every speaker: ids "s0-0", "s0-1", …

    Every second one is 50 ms longer: whoever is left out, batches have the same shape.
    """
    rows = []
    for speaker in range(speakers):
        for index, label in enumerate(labels):
            name = f"s{speaker}-{index}"
            seed = speaker * len(labels) + index
            length = seconds + 0.05 * (index % 2)
            write_wav(folder / "audio" / f"{name}.wav", voice(length, seed))
            row = {"id": name, "path": f"audio/{name}.wav", "speaker": f"s{speaker}"}
            rows.append(row if label is None else {**row, "label": label})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def read_rows(path: Path) -> list[dict]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
