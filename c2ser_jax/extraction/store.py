"""A folder of features that is valid at every moment: whole files, an index, the errors, resume.

DIR/<id>.npy       float32 [T, D] frames, [D] utterance or [E, D] tokens; appears by rename, whole
DIR/index.jsonl    one row per finished utterance; in the order of the input once the run has ended
DIR/errors.jsonl   one row per utterance that failed: id, path, reason, message
DIR/extract.json   the settings of the run, so that nothing else is mixed into the folder

Legend: T frames, D width, E extra tokens.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from c2ser_jax.data.files import TEXT, read_rows, unwritable, write_text
from c2ser_jax.errors import UserError

INDEX, ERRORS, SETTINGS = "index.jsonl", "errors.jsonl", "extract.json"
_UNSAFE = frozenset('/\\:*?"<>|%')
_LONGEST_NAME = 240


def file_stem(utterance_id: str) -> str:
    """A file name for an id: the id itself, with unsafe characters as %XX; distinct ids stay so.

    Raises:
      UserError: the id is empty or too long for a file name.
    """
    stem = "".join(
        "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))
        if character in _UNSAFE or not character.isprintable() or (character == "." and not place)
        else character
        for place, character in enumerate(utterance_id)
    )
    if not stem:
        raise UserError("an utterance has an empty id, which names no file; give it one")
    if len(stem.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise UserError(
            f"the id {utterance_id[:60]!r}… is too long for a file name; shorten it in the list"
        )
    return stem


@dataclass(frozen=True)
class Advice:
    """What a user of a store's folder can do about it, as half a sentence."""

    elsewhere: str = "name another folder"
    again: str = "start the same command again"


class FeatureStore:
    """Writes one run's features into a folder and knows what an earlier run has finished."""

    def __init__(
        self,
        directory: str | Path,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        advice: Advice | None = None,
    ):
        """Opens `directory`; `settings` is JSON that must equal an earlier run's to resume it.

        `advice` puts the errors into the words of the command that the user gave.

        Raises:
          UserError: the folder holds something and `resume` is false, or it was made with other
            settings, or it cannot be written.
        """
        self.directory, self._advice = Path(directory), advice or Advice()
        self._rows: dict[str, dict[str, Any]] = {}
        self._index: TextIO | None = None
        self._errors: TextIO | None = None
        try:
            self._open(json.loads(json.dumps(dict(settings))), resume)
        except OSError as error:
            raise self._unwritable(error) from error

    def _open(self, settings: dict[str, Any], resume: bool) -> None:
        folder = self.directory
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, not a folder; {self._advice.elsewhere}")
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(entry.name for entry in folder.iterdir())
        if names and not resume:
            raise UserError(
                f"{folder} is not empty (it holds {names[0]}); {self._advice.elsewhere}, or, to "
                f"continue an interrupted run, {self._advice.again}"
            )
        if names:
            self._check_settings(settings)
            for part in folder.glob(".*.part"):
                part.unlink()
            self._rows = {row["id"]: row for row in read_rows(folder / INDEX) if self._holds(row)}
        write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
        write_text(folder / INDEX, _lines(self._rows.values()))
        write_text(folder / ERRORS, "")
        self._index = open(folder / INDEX, "a", buffering=1, **TEXT)
        self._errors = open(folder / ERRORS, "a", buffering=1, **TEXT)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.directory / SETTINGS
        if not path.is_file():
            raise UserError(
                f"{self.directory} holds files but no {SETTINGS}, so it is no folder of features "
                f"to resume; {self._advice.elsewhere}"
            )
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise UserError(f"{path} is no valid JSON; remove the folder and extract again")
        differing = [k for k in settings if before.get(k) != settings[k]]
        if differing:
            key = differing[0]
            raise UserError(
                f"{self.directory} was extracted with {key} = {before.get(key)!r}, now it is "
                f"{settings[key]!r}; go back to the old setting, or {self._advice.elsewhere}"
            )

    def _holds(self, row: Mapping[str, Any]) -> bool:
        """Whether the file of an index row is there, whole, and of the shape the row says."""
        if not isinstance(row.get("id"), str) or not isinstance(row.get("shape"), list):
            return False
        path = self.directory / f"{file_stem(row['id'])}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return list(array.shape) == row["shape"] and array.dtype == np.float32

    def finished(self, utterance_id: str, path: str) -> bool:
        """Whether an earlier run wrote this id from this path."""
        row = self._rows.get(utterance_id)
        return row is not None and row.get("path") == path

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, utterance_id: str, values: np.ndarray, row: Mapping[str, Any]) -> None:
        """Writes `values` float32 of one utterance and its index row."""
        frames = self.open_frames(utterance_id, values.shape)
        self.write(frames, 0, values)
        self.commit(frames, row)

    def open_frames(self, utterance_id: str, shape: tuple[int, ...]) -> "FrameFile":
        """A hidden file float32 of `shape` to be filled piece by piece, then `commit`ted."""
        try:
            return FrameFile(self.directory, utterance_id, shape)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, frames: "FrameFile", offset: int, values: np.ndarray) -> None:
        """Writes rows `values` float32[n, …] of an open file at row `offset`."""
        try:
            frames.write(offset, values)
        except OSError as error:
            frames.discard()
            raise self._unwritable(error) from error

    def commit(self, frames: "FrameFile", row: Mapping[str, Any]) -> None:
        """Makes a filled file appear under its name and adds its row to the index."""
        assert self._index is not None
        try:
            name = frames.publish()
            full = {"id": frames.utterance_id, "file": name, "shape": list(frames.shape), **row}
            self._rows[frames.utterance_id] = full
            self._index.write(_line(full))
        except OSError as error:
            raise self._unwritable(error) from error

    def fail(self, utterance_id: str, path: str, reason: str, message: str) -> None:
        """Adds a row to errors.jsonl."""
        assert self._errors is not None
        row = {"id": utterance_id, "path": path, "reason": reason, "message": message}
        try:
            self._errors.write(_line(row))
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, order: Iterable[str] | None = None) -> None:
        """Closes the logs; with `order`, the ids of the input, rewrites the index in that order."""
        if self._index is not None:
            self._index.close()
        if self._errors is not None:
            self._errors.close()
        if order is not None:
            place = {utterance_id: i for i, utterance_id in enumerate(order)}
            rows = sorted(self._rows.values(), key=lambda row: place.get(row["id"], len(place)))
            write_text(self.directory / INDEX, _lines(rows))

    def _unwritable(self, error: OSError) -> UserError:
        return unwritable(
            self.directory, error, f"make room or rights there, then {self._advice.again}"
        )


class FrameFile:
    """One .npy file being written: rows arrive in any order, it is visible once published."""

    def __init__(self, directory: Path, utterance_id: str, shape: tuple[int, ...]):
        self.utterance_id, self.shape = utterance_id, tuple(int(size) for size in shape)
        name = file_stem(utterance_id)
        self._target = directory / f"{name}.npy"
        self._part = directory / f".{name}.npy.part"
        self._row_bytes = 4 * int(np.prod(self.shape[1:], dtype=np.int64))
        self._file = open(self._part, "wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        self._file.truncate(self._start + self.shape[0] * self._row_bytes)

    def write(self, offset: int, values: np.ndarray) -> None:
        """Writes rows `values` float32[n, …] at row `offset`."""
        self._file.seek(self._start + offset * self._row_bytes)
        np.ascontiguousarray(values, "<f4").tofile(self._file)

    def publish(self) -> str:
        """Renames the finished file into place and returns its name."""
        self._file.close()
        os.replace(self._part, self._target)
        return self._target.name

    def discard(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(_line(row) for row in rows)
