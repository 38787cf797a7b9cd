"""Files that are replaced whole, written under a hidden name and then renamed; rows of JSON.

Also the directory of what is kept for later runs.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError

TEXT: Any = {"encoding": "utf-8", "errors": "surrogateescape"}
"""How text is written and read: names of files need not be UTF-8."""


def cache_directory() -> Path:
    """Where this project keeps what it can make again: in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "c2ser_jax"


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A hidden name to write to, which becomes `path` when the block ends without an error.

    Raises:
      UserError: the file or its folder cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> Path:
    """Writes a text file whole and returns its path; raises `UserError` as `replacing` does."""
    with replacing(path) as part:
        part.write_text(text, **TEXT)
    return Path(path)


def read_rows(path: Path, *, strict: bool = False) -> list[dict[str, Any]]:
    """JSON objects of a log, a line each; none when there is no file.

    A last line cut short by an interruption is left out, and so is what else is no JSON.

    Raises:
      UserError: `strict`, and a line before the last is no JSON.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(**TEXT).rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line or "null")
        except ValueError:
            if strict and number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON; remove or mend it") from None
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def check_writable(directory: Path | str) -> None:
    """Raises `UserError` when nothing can be written into `directory`, or it can't be made."""
    directory = Path(directory).absolute()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise unwritable(directory, error) from error


def unwritable(
    path: Path | str, error: OSError, advice: str = "make room or rights there, or name another"
) -> UserError:
    """The sentence for a file or folder that an `OSError` kept from being written."""
    return UserError(f"cannot write {path}: {error.strerror or error}; {advice}")
