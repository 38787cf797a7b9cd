"""Loss terms on development data while a stage trains: logged, never used to choose anything."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from c2ser_jax.parallel.distributed import to_global
from c2ser_jax.tasks.task import Task
from c2ser_jax.training.loop import split_batch
from c2ser_jax.training.state import TrainState, final_params
from c2ser_jax.training.window import mean_pairs


def development_loss(
    task: Task,
    batches: Callable[[], Iterator[Mapping[str, Any]]],
    *,
    mesh: Mesh,
    seed: int,
) -> Callable[[TrainState, int], dict[str, float]]:
    """Returns what `fit` takes as `evaluate`: means of the task's terms and metrics, and the loss.

    `batches()` yields this process's rows of every development batch, the same each time. Dropout
    is off, masks are the same at every step, and the parameters are those that the stage would
    leave.
    """

    pairs = _pairs(task, seed)

    def evaluate(state: TrainState, step: int) -> dict[str, float]:
        del step
        found = []
        for place, batch in enumerate(batches()):
            arrays = to_global(split_batch(batch)[0], mesh)
            found.append(jax.device_get(pairs(state, arrays, place)))
        terms = mean_pairs([terms for terms, _ in found])
        loss = sum(task.weights[name] * value for name, value in terms.items())
        return {"loss": loss, **terms, **mean_pairs([metrics for _, metrics in found])}

    return evaluate


@functools.lru_cache(maxsize=4)
def _pairs(task: Task, seed: int) -> Any:
    """(state, batch, place) -> the task's (terms, metrics), jitted, and kept for further folds."""

    @jax.jit
    def pairs(state: TrainState, batch: Mapping[str, jax.Array], place: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), place)
        params = final_params(state, task.ema_paths)
        return task.loss(params, {}, state.ema, batch, key, state.step, train=False)

    return pairs
