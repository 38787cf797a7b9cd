"""What a corpus preparer is: a rule from a file's place to an utterance, and the folder walk."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from c2ser_jax.data.manifest import Utterance, audio_files
from c2ser_jax.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """`parse` maps a path inside the corpus to an utterance, or None for a foreign file.

    Labels are words of `labels.VOCABULARY`; the corpus's own code stays in `extra["code"]`.
    `files` is the size of the complete corpus.
    """

    name: str
    title: str
    files: int
    parse: Callable[[PurePath], Utterance | None]


@dataclass(frozen=True)
class Prepared:
    """The utterances found, and what was left out: foreign names and repeated copies."""

    utterances: list[Utterance]
    foreign: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


def prepare(corpus: Corpus, root: str | Path) -> Prepared:
    """Walks a folder for the corpus's audio, sorted by id.

    A copy of the same id (the RAVDESS archive on Kaggle holds every file twice) is left out.
    Raises `UserError` when the folder is missing or holds no file of this corpus.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the one that holds the audio")
    found: dict[str, Utterance] = {}
    foreign, repeated = [], []
    for path in audio_files(folder):
        inside = path.relative_to(folder)
        utterance = corpus.parse(inside)
        if utterance is None:
            foreign.append(str(inside))
        elif utterance.id in found:
            repeated.append(str(inside))
        else:
            found[utterance.id] = at(utterance, path)
    if not found:
        seen = f" ({len(foreign)} other audio files, such as {foreign[0]})" if foreign else ""
        raise UserError(f"{folder}: no file of {corpus.title} is in this folder{seen}")
    return Prepared([found[key] for key in sorted(found)], foreign, repeated)


def at(utterance: Utterance, path: Path) -> Utterance:
    """The utterance with its audio at another place."""
    return Utterance(**{**vars(utterance), "path": str(path)})
