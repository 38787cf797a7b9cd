"""User errors as one clear sentence, and the exit codes of every command."""

import gc
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

GARBAGE_THRESHOLDS = (200_000, 20, 50)
"""For `gc`: what JAX traces stays, and looking through it takes a twelfth of a short run's time."""


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and how to mend it."""


def shortened(text: str) -> str:
    """A text for the middle of a sentence: its beginning and "…" beyond 60 characters."""
    return text if len(text) <= 60 else text[:57] + "…"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names for a sentence, cut and printable, and how many more there are."""
    shown = ", ".join(name[:160] for name in names[:most])
    shown = "".join(letter if letter.isprintable() else "?" for letter in shown)
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def run_command(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Runs `main(None)` and exits with its code; a `UserError` prints its sentence and exits 2.

    So does an `OSError` that names a file. Where nobody reads stdout any more, as after `| head`,
    the code is 141 without a word.
    """
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    try:
        code = main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        if not _unread():  # another pipe, say a worker's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.filename is None:
            raise
        why = f"{error.filename}: {error.strerror}"
        print(f"error: {why}; check that it is there, with room and rights", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _unread() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    waiting = select.poll()
    try:
        waiting.register(sys.stdout.fileno(), select.POLLOUT)
    except OSError:  # no file behind it
        return False
    return any(event & select.POLLERR for _, event in waiting.poll(0))
