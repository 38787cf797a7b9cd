"""Preemption: SIGTERM asks the run to save and leave; a second one ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved and the same command goes on."""


class StopSignal:
    """While entered, notes the first SIGTERM in `requested`; the second acts as it did before."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = False
        self._at_once = False

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises `Stopped` wherever the signal comes: for work that a new start does over."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raises `Stopped` when the signal has come."""
        if self.requested:
            raise Stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self._at_once:
            raise Stopped

    def _restore(self) -> None:
        if self._installed:
            self._installed = False
            # None: the previous handler was not installed from Python and cannot be put back.
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
