"""Compiled programs, one per batch shape, with their compile time told apart."""

import time
from collections.abc import Callable
from typing import Any

import jax


class Programs:
    """Calls a jitted function ahead-of-time compiled for each batch shape it meets.

    `seconds` is all time spent compiling; `say` gets one line per shape.
    """

    def __init__(self, jitted: Any, say: Callable[[str], None]):
        self.seconds = 0.0
        self._jitted = jitted
        self._say = say
        self._compiled: dict[Any, Any] = {}

    def __call__(self, state: Any, healthy: Any, batch: dict[str, jax.Array], *rest: Any) -> Any:
        """Runs the program for the shapes of `batch`; the other arguments keep their shapes."""
        signature = tuple((name, a.shape, a.dtype.name) for name, a in sorted(batch.items()))
        if signature not in self._compiled:
            begun = time.perf_counter()
            lowered = self._jitted.lower(state, healthy, batch, *rest)
            self._compiled[signature] = lowered.compile()
            seconds = time.perf_counter() - begun
            self.seconds += seconds
            main = batch.get("audio", next(iter(batch.values())))
            self._say(f"compiling shape {'×'.join(map(str, main.shape))} … {seconds:.1f} s")
        return self._compiled[signature](state, healthy, batch, *rest)
