"""Compares one device with meshes of eight virtual ones; prints one JSON line of what it saw.

python -m tests.integration.eight_devices DIRECTORY
"""

import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from c2ser_jax.compilation import enable_compilation_cache
from c2ser_jax.errors import UserError, run_command
from c2ser_jax.parallel.distributed import data_share, to_global, to_host
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh
from c2ser_jax.parallel.rules import RULES
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.checkpoint import TrainingCheckpoints, flatten
from c2ser_jax.training.loop import check_rows, split_batch
from c2ser_jax.training.state import create_state, merge_params, state_shapes
from c2ser_jax.training.step import loss_and_gradients
from tests.integration.tiny_pretraining import make_data, make_task

KERNEL = "encoder/blocks/attn/qkv/kernel"
OPTIMIZER = optimizers.build(optimizers.OptimizerConfig(), 10)


def shapes_on(mesh: Any, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Returns (shapes of the batch, shapes of the state) on a mesh."""
    task = make_task()
    structs = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()}
    return structs, state_shapes(task, OPTIMIZER, structs, mesh=mesh, ema=task.ema_paths)


def create(mesh: Any, batch: dict[str, np.ndarray]) -> Any:
    """Returns the state at step 0."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        structs, shapes = shapes_on(mesh, batch)
        return create_state(make_task(), OPTIMIZER, structs, shapes, key=jax.random.key(0))


def measure(mesh: Any, state: Any, batch: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Returns (loss, gradients) of one batch in two microbatches, from the same key."""
    task = make_task()
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        inputs = to_global(batch, mesh)
        check_rows(inputs, mesh, 2)
        loss, gradients, _, _ = jax.jit(
            lambda state, inputs: loss_and_gradients(
                task, state, inputs, jax.random.key(1), microbatches=2
            )
        )(state, inputs)
    return float(loss), flatten(to_host(gradients))


def relative(got: Any, wanted: Any) -> dict[str, float]:
    """Returns the error of every leaf over the leaf's own norm, or 1e-4 of the whole if larger."""
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in wanted.values()))
    return {
        path: float(np.linalg.norm(got[path] - leaf) / max(np.linalg.norm(leaf), 1e-4 * whole))
        for path, leaf in wanted.items()
    }


def part_shape(array: jax.Array) -> list[int]:
    """Returns the shape of what one device holds."""
    return list(array.addressable_shards[0].data.shape)


def sentence(action: Any) -> str:
    """Returns what the UserError of `action` says."""
    try:
        action()
    except UserError as error:
        return str(error)
    return "no error"


def main(argv: list[str] | None = None) -> int:
    """Runs every comparison and prints the result."""
    (directory,) = map(Path, sys.argv[1:] if argv is None else argv)
    jax.config.update("jax_num_cpu_devices", 8)
    enable_compilation_cache()
    batch, _ = split_batch(next(make_data(rows=16).batches(0)))
    meshes = {
        "alone": make_local_mesh(),
        "fsdp": make_mesh(MeshConfig(4, 2, 1)),
        "tensor": make_mesh(MeshConfig(-1, 1, 2)),
        "moved": make_mesh(MeshConfig(2, 1, 4)),
    }
    one = create(meshes["alone"], batch)
    parameters = flatten(to_host(merge_params(one.trainable, one.frozen)))
    loss, gradients = measure(meshes["alone"], one, batch)
    seen: dict[str, Any] = {"devices": len(jax.devices()), "loss": loss}
    split = create(meshes["fsdp"], batch)
    checkpoints = TrainingCheckpoints(directory / "checkpoints")
    checkpoints.save(1, split, {})
    checkpoints.wait()
    states = {
        name: checkpoints.restore(1, shapes_on(meshes[name], batch)[1])
        for name in ("tensor", "moved", "alone")
    }
    for name in ("moved", "alone"):
        pairs = zip(jax.tree.leaves(states[name]), jax.tree.leaves(split), strict=True)
        seen[name] = {
            "equal": all(np.array_equal(to_host(a), to_host(b)) for a, b in list(pairs)[1:]),
            "kernel": part_shape(flatten(states[name].trainable)[KERNEL]),
        }
    for name, state in (("fsdp", split), ("tensor", states["tensor"])):
        other_loss, other = measure(meshes[name], state, batch)
        initial = relative(flatten(to_host(state.trainable)), parameters)
        errors = relative(other, gradients)
        kernel = flatten(state.trainable)[KERNEL]
        slot = next(s for s in jax.tree.leaves(state.opt) if s.shape == kernel.shape)
        seen[name] = {
            "loss": abs(other_loss - loss) / abs(loss),
            "gradient": max(errors.values()),
            "worst": max(errors, key=lambda path: errors[path]),
            "initial": max(initial.values()),
            "kernel": [list(kernel.shape), part_shape(kernel)],
            "slot": part_shape(slot),
            "share": data_share(meshes[name]),
        }
    few = {name: rows[:12] for name, rows in batch.items()}
    seen["rows"] = sentence(lambda: to_global(few, make_mesh(MeshConfig())))
    whole = to_global(batch, make_mesh(MeshConfig()))
    seen["cut"] = sentence(lambda: check_rows(whole, make_mesh(MeshConfig()), 4))
    seen["mesh"] = sentence(lambda: make_mesh(MeshConfig(3, 1, 1)))
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    run_command(main)
