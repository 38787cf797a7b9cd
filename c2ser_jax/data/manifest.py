"""Lists of utterances: one reader for every layout in use, one layout written.

Layouts (told apart by content): own jsonl · C2SER and Emo-Emilia jsonl · EmoBox jsonl and json ·
EmoDB metadata.jsonl · FunASR jsonl · CSV or TSV with a header · fairseq tsv · Kaldi wav.scp ·
plain list of paths · folder · single audio files.
A path that does not exist is kept: reading the audio reports it as "missing".
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2ser_jax.data.files import replacing
from c2ser_jax.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph")


@dataclass(frozen=True)
class Utterance:
    """One row: `path` may be cut to [`start`, `end`) seconds; None means unknown."""

    id: str
    path: str
    start: float | None = None
    end: float | None = None
    label: str | None = None
    speaker: str | None = None
    language: str | None = None
    corpus: str | None = None
    text: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def channel(self) -> int | None:
        """The channel (from 1) to read instead of the mean, as EmoBox lists give it."""
        channel = self.extra.get("channel")
        return None if channel is None else int(channel)


PathLike = str | os.PathLike[str]


def read_manifest(
    sources: PathLike | Sequence[PathLike], *, root: PathLike | None = None
) -> list[Utterance]:
    """Reads one or several lists, folders or audio files into utterances with unique ids.

    Relative paths are looked up under `root`, then beside the list. Raises `UserError` when a
    list does not exist, is empty, has an unknown layout, or repeats an id.
    """
    from c2ser_jax.data.layouts import read_source

    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not given:
        raise UserError("no input was given; name audio files, a folder or a list")
    base = None if root is None else Path(root)
    if base is not None and not base.is_dir():
        raise UserError(f"{base}: the root folder does not exist; give the folder of the audio")
    utterances: list[Utterance] = []
    for source in given:
        utterances += read_source(Path(source), base)
    check_unique_ids(utterances)
    return utterances


def write_manifest(path: PathLike, utterances: Iterable[Utterance]) -> None:
    """Writes our jsonl (fields of `Utterance`, unknown ones left out), atomically.

    Audio below the manifest's folder is written relative to it, so the folder can be moved. Raises
    `UserError` when it cannot be written.
    """
    target = Path(path)
    folder = target.parent.resolve()
    with replacing(target) as part, open(part, "w", encoding="utf-8") as file:
        for utterance in utterances:
            row = {k: v for k, v in dataclasses.asdict(utterance).items() if v not in (None, {})}
            absolute = Path(os.path.abspath(utterance.path))
            inside = absolute.is_relative_to(folder)
            row["path"] = absolute.relative_to(folder).as_posix() if inside else str(absolute)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def audio_files(folder: Path) -> list[Path]:
    """All audio files below a folder, sorted; hidden ones (macOS leaves "._a.wav") are not."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
    )


def check_unique_ids(utterances: Sequence[Utterance]) -> None:
    """Raises `UserError` naming the first id that occurs twice and both its files."""
    seen: dict[str, Utterance] = {}
    for utterance in utterances:
        other = seen.get(utterance.id)
        if other is not None:
            raise UserError(
                f"the id {utterance.id!r} occurs twice ({other.path} and {utterance.path}); "
                "give every utterance its own id"
            )
        seen[utterance.id] = utterance
