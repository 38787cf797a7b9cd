"""Checkpoints: training state through orbax (this is its only importer), and model directories.

WORKDIR/checkpoints/STEP/ holds the checkpointables `params` (trained and frozen, one tree), `opt`,
`ema` (when there is one); the run's record is its JSON metadata. The model-directory half,
re-exported here, needs numpy alone; orbax and jax are imported when training state is touched.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError
from c2ser_jax.training.model_directory import (
    ModelDescription,
    flatten,
    leaves_of,
    nest,
    read_carried,
    read_description,
    read_params,
    read_trained_on,
    write_model,
)

__all__ = [
    "ModelDescription",
    "TrainingCheckpoints",
    "flatten",
    "has_checkpoint",
    "leaves_of",
    "nest",
    "read_carried",
    "read_description",
    "read_params",
    "read_trained_on",
    "write_model",
]


_SLICE_BYTES = 1 << 20
"""Replicas share out the writing of a leaf where each would write at least so much: each shape of a
slice is a program to compile, which small leaves are not worth."""


def has_checkpoint(directory: Path) -> bool:
    """Whether a complete checkpoint lies in `directory`; one that is being written is none."""
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


class TrainingCheckpoints:
    """The checkpoints of one run, written in the background, the newest ones kept.

    A checkpoint counts once its directory has been renamed into place; a save that was killed or
    met a full disk leaves the earlier ones as they were; the next start removes its remains.
    """

    def __init__(self, directory: Path, *, keep_last: int = 2, keep_every: int | None = None):
        from orbax.checkpoint import v1 as ocp

        logging.getLogger("absl").addFilter(_QUIET)
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(keep_last)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        every_time = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        self.directory = Path(directory).resolve()
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = _SLICE_BYTES
        self._checkpointer = ocp.training.Checkpointer(
            str(self.directory),
            context=context,
            save_decision_policy=every_time,  # type: ignore[arg-type]
            preservation_policy=policies.AnyPreservationPolicy(kept),  # type: ignore[arg-type]
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None when there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts to save `state`, which may be donated as soon as this returns.

        An earlier save still being written is waited for; its failure is raised here.
        """
        from c2ser_jax.training.state import merge_params

        parts = {
            "params": merge_params(state.trainable, state.frozen),
            "opt": state.opt,
        }
        if state.ema is not None:
            parts["ema"] = state.ema
        with self._told_as_a_sentence():
            self._checkpointer.save_checkpointables_async(
                step, parts, force=True, custom_metadata=dict(meta)
            )

    def wait(self) -> None:
        """Returns when everything is on the disk. Errors: UserError when a save failed."""
        with self._told_as_a_sentence():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the background and releases it."""
        with self._told_as_a_sentence():
            self._checkpointer.close()

    def read_meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON saved with the checkpoint of `step`."""
        stored: Any = self._checkpointer.checkpointables_metadata(step).custom_metadata
        return dict(stored or {})

    def restore(self, step: int, shapes: Any) -> Any:
        """Returns the state of `step`, placed as `shapes` (a TrainState of structs) says.

        Errors: UserError listing what the checkpoint lacks, has too much or in another shape.
        """
        import jax

        from c2ser_jax.training.state import merge_params

        wanted = {"params": merge_params(shapes.trainable, shapes.frozen), "opt": shapes.opt}
        if shapes.ema is not None:
            wanted["ema"] = shapes.ema
        self._compare(step, wanted)
        loaded = self._checkpointer.load_checkpointables(step, wanted)
        params = flatten(loaded["params"])
        pick = lambda tree: nest({path: params[path] for path in flatten(tree)})  # noqa: E731
        return shapes.replace(
            step=jax.device_put(jax.numpy.int32(step), shapes.step.sharding),
            trainable=pick(shapes.trainable),
            frozen=pick(shapes.frozen),
            opt=loaded["opt"],
            ema=loaded.get("ema"),
        )

    def restore_params(self, step: int, shapes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters of `step` alone, placed as `shapes` (ShapeDtypeStructs) says."""
        self._compare(step, {"params": shapes})
        return self._checkpointer.load_checkpointables(step, {"params": dict(shapes)})["params"]

    def _compare(self, step: int, wanted: Mapping[str, Any]) -> None:
        metadata = self._checkpointer.checkpointables_metadata(step).metadata
        differences = []
        for part, tree in wanted.items():
            stored = {} if metadata.get(part) is None else _shapes(metadata[part])
            target = _shapes(tree)
            for path in sorted(target.keys() | stored.keys()):
                if path not in stored:
                    differences.append(f"{part}: no {path} in it")
                elif path not in target:
                    differences.append(f"{part}: unknown {path} in it")
                elif stored[path] != target[path]:
                    shapes = f"{list(stored[path])} in it, {list(target[path])} in this run"
                    differences.append(f"{part}: {path} is {shapes}")
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise UserError(
                f"the checkpoint {self.directory / str(step)} does not fit this run: "
                f"{'; '.join(differences[:5])}{more}: use the config it was made "
                "with, or another working directory"
            )

    @contextlib.contextmanager
    def _told_as_a_sentence(self) -> Iterator[None]:
        """Turns a full or broken disk into a UserError; tensorstore tells it as a ValueError."""
        try:
            yield
        except (OSError, ValueError) as error:
            told = re.search(r"([^:]+) \[os_error_code=", str(error))
            if isinstance(error, ValueError) and not told:
                raise
            reason = told[1].strip() if told else getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"could not save a checkpoint in {self.directory}: {reason}; earlier checkpoints "
                "are untouched: make room there and start the same command again"
            ) from error


class _NotFromOrbax(logging.Filter):
    """Drops what orbax logs: its failures are raised here, its tracebacks fill screens."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


_QUIET = _NotFromOrbax()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of arrays, structs or orbax's own array metadata, in one notation."""
    import jax

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_path(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _path(path: Any) -> str:
    """Names a leaf the same in optax's tuples and in what orbax read back from the file."""
    parts = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    return "/".join(str(part) for part in parts)
