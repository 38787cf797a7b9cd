"""User errors as one clear sentence, and the exit codes of every command."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user gave is wrong; the message says what, where and how to mend it."""


def run_command(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Runs `main(None)` and exits with its code; a `UserError` prints its sentence and exits 2.

    So does an `OSError` that names a file.
    """
    try:
        code = main(None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
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
