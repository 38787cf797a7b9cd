"""The training state: born sharded, split into what is trained and what is frozen.

Parameters are nested dicts; paths join with "/" ("encoder/blocks/attn/qkv/kernel"). Regular
expressions match from the start of a path and may stop anywhere ("encoder/" is the whole encoder).
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.rules import logical_sharding, replicated, unbox
from c2ser_jax.tasks.task import merge_params
from c2ser_jax.training.model_directory import flatten, nest

__all__ = [
    "TrainState",
    "check_leaves",
    "compile_pattern",
    "create_state",
    "final_params",
    "merge_params",
    "split_params",
    "state_shapes",
]


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes; `trainable` and `frozen` have disjoint leaves."""

    step: Any  # int32[], updates done
    trainable: Any
    frozen: Any
    opt: Any  # optimizer slots of `trainable` alone
    ema: Any  # float32 averages of the chosen parameters, None without


def split_params(params: Mapping[str, Any], pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (leaves whose path matches, the others). Errors: UserError on a bad pattern."""
    matcher = compile_pattern(pattern)
    flat = flatten(params)
    chosen = {path: leaf for path, leaf in flat.items() if matcher.match(path)}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return nest(chosen), nest(rest)


def final_params(state: TrainState, teacher_paths: str | None) -> dict[str, Any]:
    """What training leaves: averaged parameters where an average that is no teacher was kept."""
    params = merge_params(state.trainable, state.frozen)
    if state.ema is None or teacher_paths is not None:
        return params
    return nest({**flatten(params), **flatten(state.ema)})


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Returns the compiled expression. Errors: UserError when it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression of paths: {error}") from error


def state_shapes(
    task: Any,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    *,
    mesh: Mesh,
    trainable: str = ".*",
    ema: str | None = None,
    frozen_dtype: str | None = None,
    frozen_dtype_paths: str | None = None,
) -> TrainState:
    """Returns the state as ShapeDtypeStructs with shardings; nothing is computed or allocated.

    Frozen parameters (those whose path matches `frozen_dtype_paths`, or all) have `frozen_dtype`;
    None: the model's own.
    Errors: UserError when `trainable` or `ema` matches no parameter, or the mesh does not fit.
    """
    boxed = _initialiser(task).eval_shape(jax.random.key(0), batch)
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(boxed),
        logical_sharding(boxed, mesh),
    )
    chosen, frozen = split_params(placed, trainable)
    if not chosen:
        raise UserError(
            f"the pattern {trainable!r} of trainable parameters matches none of the "
            f"{len(flatten(placed))} paths, such as {next(iter(flatten(placed)))!r}: change it"
        )
    if frozen_dtype is not None:
        cast, rest = split_params(frozen, frozen_dtype_paths or ".*")
        frozen = merge_params(rest, jax.tree.map(lambda leaf: _as(leaf, frozen_dtype), cast))
    averaged = None
    if ema is not None:
        averaged = jax.tree.map(_as_float32, split_params(placed, ema)[0])
        if not averaged:
            raise UserError(
                f"the pattern {ema!r} of averaged parameters matches no path: change it"
            )
    whole = replicated(mesh)
    slots = jax.eval_shape(optimizer.init, chosen)
    opt = optax.tree.map_params(
        optimizer,
        lambda slot, parameter: _struct(slot, parameter.sharding),
        slots,
        chosen,
        transform_non_params=lambda slot: _struct(slot, whole),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step=step, trainable=chosen, frozen=frozen, opt=opt, ema=averaged)


def create_state(
    task: Any,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    shapes: TrainState,
    *,
    key: jax.Array,
    init_params: Mapping[str, Any] | None = None,
) -> TrainState:
    """Returns the state at step 0, every array created on its own devices.

    `init_params` (nested dicts of numpy arrays, whole or a part of the tree) replace initial values
    leaf by leaf. Errors: UserError naming a leaf that the model lacks or that has another shape.
    """
    target = flatten(merge_params(shapes.trainable, shapes.frozen))
    given = flatten(init_params or {})
    check_leaves(given, target)
    missing = {path: leaf for path, leaf in target.items() if path not in given}

    params = {}
    if missing:
        params = _values(task, tuple(batch.items()), tuple(missing.items()))(key)
    params.update({path: _put(array, target[path]) for path, array in given.items()})
    leaves, tree = jax.tree.flatten(shapes)
    return _completed(optimizer, tuple(leaves), tree)(params)


@functools.lru_cache(maxsize=4)
def _initialiser(task: Any) -> Any:
    """The task's jitted `init`, one object, so that shapes and values need one trace of it."""
    return jax.jit(task.init)


@functools.lru_cache(maxsize=4)
def _values(task: Any, batch: tuple, wanted: tuple) -> Any:
    """key -> {path: array}: initial values of the (path, shape) pairs `wanted`."""

    def initialise(key: jax.Array) -> dict[str, Any]:
        zeros = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in batch}
        flat = flatten(unbox(_initialiser(task)(key, zeros)))
        return {path: flat[path].astype(leaf.dtype) for path, leaf in wanted}

    return jax.jit(initialise, out_shardings={path: leaf.sharding for path, leaf in wanted})


@functools.lru_cache(maxsize=4)
def _completed(optimizer: optax.GradientTransformation, leaves: tuple, tree: Any) -> Any:
    """{path: array} -> the state at step 0 with these parameters, which are donated."""
    shapes = jax.tree.unflatten(tree, leaves)

    def complete(flat: dict[str, Any]) -> TrainState:
        trainable = {path: flat[path] for path in flatten(shapes.trainable)}
        frozen = {path: flat[path] for path in flatten(shapes.frozen)}
        averaged = None
        if shapes.ema is not None:
            averaged = nest({p: flat[p].astype(jnp.float32).copy() for p in flatten(shapes.ema)})
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=nest(trainable),
            frozen=nest(frozen),
            opt=optimizer.init(nest(trainable)),
            ema=averaged,
        )

    out = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(complete, out_shardings=out, donate_argnums=0)


def check_leaves(given: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Compares {path: array} with the model's {path: shape}. Errors: UserError naming the leaf."""
    for path, array in given.items():
        if path not in target:
            known = ", ".join(list(target)[:3])
            raise UserError(
                f"the initial parameters hold {path!r}, which this model does not have (it has "
                f"{known}, …): take a checkpoint of the same model or change the config"
            )
        if tuple(array.shape) != tuple(target[path].shape):
            raise UserError(
                f"the initial parameter {path!r} has shape {list(array.shape)}, the model wants "
                f"{list(target[path].shape)}: take one of the same size or change the config"
            )


def _put(array: np.ndarray, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Copies a host array into a sharded one; a copy, because the result may be donated."""

    def part(index: Any) -> np.ndarray:
        return np.array(array[index], dtype=target.dtype, copy=True)

    return jax.make_array_from_callback(target.shape, target.sharding, part)  # type: ignore[arg-type]


def _struct(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _as(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)


def _as_float32(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return _as(leaf, jnp.float32)
