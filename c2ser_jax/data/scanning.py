"""One look at every row before training: which are usable, how long, and why the others are bad."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from c2ser_jax.data.audio import AudioScan, BadAudio, RunningScan
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import MemorySource, Source
from c2ser_jax.errors import UserError

_LISTED = 50


@dataclass(frozen=True)
class BadFile:
    """A row that could not be used, with one word (`audio.REASONS`) and one sentence why."""

    id: str
    path: str
    reason: str
    detail: str

    @classmethod
    def of(cls, row: Utterance, error: BadAudio) -> "BadFile":
        """The row that raised an error."""
        return cls(row.id, row.path, error.reason, error.detail)


@dataclass(frozen=True)
class Scanned:
    """`source` to load from, `usable` rows of it, their `scans` (same order), and the `bad`."""

    source: Source
    usable: list[int]
    scans: list[AudioScan]
    bad: list[BadFile]


def scan_source(
    source: Source,
    *,
    decode: bool = True,
    cache: bool = False,
    allow_silent: bool = False,
    max_bad_share: float = 1.0,
    threads: int = 2,
) -> Scanned:
    """Looks at every row, by decoding it or (`decode` False) by its header only.

    With `cache` the returned source holds the usable rows, decoded. Raises `UserError` with the
    list when the share of bad rows is above `max_bad_share`, or when nothing is usable.
    """
    if not len(source):
        raise UserError("the data are empty; give a list with at least one utterance")

    def look(index: int) -> tuple[AudioScan | None, np.ndarray | None, BadFile | None]:
        row = source.utterances[index]
        try:
            if cache:
                audio, _ = source.load(index)
                running = RunningScan(row.path)
                running.add(audio)
                return running.result(allow_silent=allow_silent), audio, None
            if not decode:
                return source.probe(index), None, None
            return source.scan(index, allow_silent=allow_silent), None, None
        except BadAudio as error:
            return None, None, BadFile.of(row, error)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(look, range(len(source))))
    bad = [row for _, _, row in found if row is not None]
    scans = [scan for scan, _, _ in found if scan is not None]
    usable = [i for i, (scan, _, _) in enumerate(found) if scan is not None]
    if not usable or len(bad) > max_bad_share * len(source):
        raise UserError(
            f"{len(bad)} of {len(source)} files cannot be used, more than max_bad_share "
            f"{max_bad_share} allows; mend or remove them, or raise the share:\n{listing(bad)}"
        )
    if cache:
        kept = [(source.utterances[i], a) for i, (_, a, _) in enumerate(found) if a is not None]
        return Scanned(MemorySource(kept), list(range(len(kept))), scans, bad)
    return Scanned(source, usable, scans, bad)


def listing(bad: list[BadFile]) -> str:
    """One line per bad row: id, reason, and the sentence; the first 50."""
    lines = [f"  {row.id}: {row.reason}: {row.path}: {row.detail}" for row in bad[:_LISTED]]
    if len(bad) > _LISTED:
        lines.append(f"  and {len(bad) - _LISTED} more")
    return "\n".join(lines)
