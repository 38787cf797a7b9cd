"""What the stages of one fold share, and how its processes take turns."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jax.sharding import Mesh

from c2ser_jax.config import RunConfig
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import Source
from c2ser_jax.data.splits import Fold
from c2ser_jax.errors import UserError
from c2ser_jax.parallel.distributed import gather_bytes, is_main_process
from c2ser_jax.training.preemption import Stopped, StopSignal

Result = TypeVar("Result")


@dataclass(frozen=True)
class FoldRun:
    """One fold of a run."""

    run: RunConfig
    fold: Fold
    source: Source
    labels: list[str]
    workdir: Path
    shared: Path
    """Folder for what the folds have in common."""
    mesh: Mesh
    progress: bool | None
    say: Callable[[str], None]
    lost: list[str]
    """Ids of test or probe utterances that turned out to be unusable; stages add to it."""
    stop: StopSignal

    def lose(self, utterance: Utterance, message: str) -> None:
        """Notes a test or probe utterance that cannot be used."""
        self.say(f"{self.fold.name}: left out {utterance.id}: {message}")
        self.lost.append(utterance.id)


def alone(stop: StopSignal, work: Callable[[], Result]) -> Result | None:
    """Does `work` on the main process while the others wait; returns its result there, else None.

    Raises:
      Stopped: a signal came to any process (at once, in the middle of the work); UserError: on the
        other processes, when the work failed.
    """
    return together(stop, work if is_main_process() else lambda: None)


def together(stop: StopSignal, work: Callable[[], Result]) -> Result:
    """Does `work` on every process; returns when all are done, or raises as `alone` does."""
    result, failure = None, None
    try:
        with stop.at_once():
            result = work()
    except Exception as error:
        failure = error
    word = b"" if failure is None else b"stopped" if isinstance(failure, Stopped) else b"failed"
    words = gather_bytes(b"stopped" if stop.requested and not word else word)
    if failure is not None and not isinstance(failure, Stopped):
        raise failure
    if b"failed" in words:
        raise UserError("another process of this run failed; what it printed says why")
    if b"stopped" in words:
        raise Stopped
    return result  # type: ignore[return-value]
