"""One training step: exact sums over microbatches, clipping, update, moving average, NaN check.

The divided loss is Σ_terms weight · Σ sum / Σ count over all microbatches and devices, so it does
not depend on how the batch is cut. Its gradient needs the total counts before the first gradient:
counts depend on the batch and the key, never on parameters, so a first pass asks for counts alone
and the compiler drops the model from it. Shapes: M microbatches, B rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from c2ser_jax.errors import UserError
from c2ser_jax.training.model_directory import flatten, nest
from c2ser_jax.training.state import TrainState, merge_params

Pairs = dict[str, tuple[jax.Array, jax.Array]]
SAMPLE_RATE = 16000


def make_train_step(
    task: Any,
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: Callable[[Any], Any],
    microbatches: int = 1,
    ema_decay: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[..., tuple[TrainState, jax.Array, dict[str, Any]]]:
    """Returns step(state, healthy, batch, stop, run_key) -> (state, healthy, report), to be jitted.

    `healthy` bool[] falls to False when the loss or a gradient is not finite, and stays there: from
    then on steps leave the state as it was before the first bad one. `stop` bool[devices] is True
    on the devices of a process told to stop. `report` holds the (sum, count) pairs of "terms" and
    "metrics", "loss", "gradient_norm", "learning_rate", "stop" and, with audio, "audio_seconds".
    """

    def train_step(state, healthy, batch, stop, run_key):
        key = jax.random.fold_in(run_key, state.step)
        loss, grads, terms, metrics = loss_and_gradients(
            task, state, batch, key, microbatches=microbatches
        )
        norm = optax.tree.norm(grads)
        healthy = healthy & jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt = optimizer.update(grads, state.opt, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        averages = state.ema
        if averages is not None and ema_decay is not None:
            params = merge_params(cast(Any, trainable), state.frozen)
            averages = update_average(averages, params, ema_decay(state.step + 1))
        new = state.replace(step=state.step + 1, trainable=trainable, opt=opt, ema=averages)
        # Without what is frozen: XLA:CPU would copy all of it that is bfloat16 in every step.
        moving = jax.tree.map(
            lambda a, b: jnp.where(healthy, a, b), new.replace(frozen=()), state.replace(frozen=())
        )
        new = moving.replace(frozen=state.frozen)
        report = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "stop": jnp.any(stop),
            "terms": terms,
            "metrics": metrics,
        }
        if "audio_samples" in batch:
            report["audio_seconds"] = jnp.sum(batch["audio_samples"]) / SAMPLE_RATE
        return new, healthy, report

    return train_step


def loss_and_gradients(
    task: Any,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    microbatches: int = 1,
) -> tuple[jax.Array, Any, Pairs, Pairs]:
    """Returns (loss float32[], gradients of `state.trainable`, terms, metrics) of one global batch.

    Terms and metrics are {name: (sum, count)} over all microbatches. With M microbatches, number m
    holds the rows m, m + M, …, which keeps every row on its device, and the key fold_in(key, m).
    """

    # Jitted by itself so that counting and differentiating trace the model once, not twice.
    @jax.jit
    def terms_of(trainable, frozen, ema, part, part_key, step) -> tuple[Pairs, Pairs]:
        terms, metrics = task.loss(trainable, frozen, ema, part, part_key, step)
        if unknown := sorted(terms.keys() - dict(task.weights).keys()):
            raise UserError(f"the task {task.name} returns terms without a weight: {unknown}")
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (terms, metrics))

    def pairs(trainable: Any, part: Any, part_key: jax.Array) -> tuple[Pairs, Pairs]:
        return terms_of(trainable, state.frozen, state.ema, part, part_key, state.step)

    def weighted(trainable: Any, part: Any, part_key: jax.Array, counts: Any) -> Any:
        terms, metrics = pairs(trainable, part, part_key)
        totals = counts if counts is not None else {name: c for name, (_, c) in terms.items()}
        loss = sum(
            (
                task.weights[name] * divide(value, jax.lax.stop_gradient(totals[name]))
                for name, (value, _) in terms.items()
                if task.weights[name]
            ),
            jnp.zeros((), jnp.float32),
        )
        return loss, (terms, metrics)

    gradient = jax.value_and_grad(weighted, has_aux=True)
    if microbatches == 1:
        (loss, (terms, metrics)), grads = gradient(state.trainable, batch, key, None)
        return loss, grads, terms, metrics

    parts = cut(batch, microbatches)
    keys = jax.vmap(lambda m: jax.random.fold_in(key, m))(jnp.arange(microbatches))

    def count(total: Any, part_and_key: Any) -> tuple[Any, None]:
        terms, _ = pairs(state.trainable, *part_and_key)
        return jax.tree.map(jnp.add, total, {name: c for name, (_, c) in terms.items()}), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)  # noqa: E731
    example = jax.eval_shape(pairs, state.trainable, *first)
    counts, _ = jax.lax.scan(count, {name: jnp.zeros(()) for name in example[0]}, (parts, keys))

    def accumulate(total: Any, part_and_key: Any) -> tuple[Any, None]:
        (loss, aux), grads = gradient(state.trainable, *part_and_key, counts)
        return jax.tree.map(jnp.add, total, (loss, grads, *aux)), None

    start = (jnp.zeros(()), zeros(state.trainable), *zeros(example))
    (loss, grads, terms, metrics), _ = jax.lax.scan(accumulate, start, (parts, keys))
    return loss, grads, terms, metrics


def cut(batch: Mapping[str, jax.Array], microbatches: int) -> dict[str, jax.Array]:
    """Returns arrays [M, B/M, …] of arrays [B, …]: row r becomes row r // M of microbatch r % M.

    Errors: UserError when B is no multiple of M.
    """
    parts = {}
    for name, rows in batch.items():
        if rows.shape[0] % microbatches:
            raise UserError(
                f"a batch of {rows.shape[0]} rows cannot be cut into {microbatches} microbatches: "
                "make the rows of a batch a multiple of it"
            )
        shape = (rows.shape[0] // microbatches, microbatches, *rows.shape[1:])
        parts[name] = jnp.moveaxis(rows.reshape(shape), 1, 0)
    return parts


def divide(total: Any, count: Any) -> Any:
    """Returns sum / count, and 0 where nothing was counted."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)


def annealed_decay(start: float, end: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Returns update -> decay, rising linearly from `start` to `end` over `steps` updates.

    Source: get_annealed_rate in facebookresearch/fairseq examples/data2vec/models/data2vec2.py.
    """

    def decay(step: jax.Array) -> jax.Array:
        share = jnp.minimum(step / max(steps, 1), 1.0) if steps else jnp.ones(())
        return start + (end - start) * share

    return decay


def update_average(averages: Any, params: Any, decay: jax.Array) -> Any:
    """Returns decay · average + (1 - decay) · parameter for every averaged leaf, in float32."""
    flat = flatten(params)
    return nest(
        {
            path: average * decay + flat[path].astype(jnp.float32) * (1 - decay)
            for path, average in flatten(averages).items()
        }
    )
