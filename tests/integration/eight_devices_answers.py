"""Compares one device with meshes of eight for chain of thought; prints one JSON line.

One program serves both stages: a batch of explicit answers, and one that mixes them with implicit
ones. The state, a teacher and a half-precision language model in it, is created on the mesh that
splits everything and loaded from its checkpoint on the others.

python -m tests.integration.eight_devices_answers DIRECTORY [MESH …]
"""

import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from c2ser_jax.compilation import enable_compilation_cache
from c2ser_jax.errors import run_command
from c2ser_jax.parallel.distributed import to_global, to_host
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh
from c2ser_jax.parallel.rules import RULES
from c2ser_jax.tasks.cot import TEACHER, ChainOfThought
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.checkpoint import TrainingCheckpoints, flatten
from c2ser_jax.training.loop import split_batch
from c2ser_jax.training.state import create_state, state_shapes
from c2ser_jax.training.step import loss_and_gradients
from tests.integration.eight_devices import part_shape, relative
from tests.tiny_answers import MODEL, TASK, make_data

KERNEL = "llm/layers/self_attn/q_proj/kernel"
STEPS, ROWS = 8, 16
BATCHES = {"explicit": 0, "mixed": 4}  # of falling shares, the first has only explicit answers
MESHES = {"all axes": (2, 2, 2), "data × fsdp": (4, 2, 1), "fsdp × tensor": (1, 2, 4)}
TASKS = ChainOfThought(TASK, MODEL)
OPTIMIZER = optimizers.build(optimizers.OptimizerConfig(), STEPS)


def shapes_on(mesh: Any, batch: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Returns (shapes of the batch, shapes of the state) on a mesh."""
    structs = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch.items()}
    return structs, state_shapes(
        TASKS, OPTIMIZER, structs, mesh=mesh, trainable=TASKS.trainable,
        frozen_dtype="bfloat16", frozen_dtype_paths="llm/",
    )  # fmt: skip


def measure(mesh: Any, state: Any, batches: dict[str, Any]) -> dict[str, Any]:
    """Returns {batch: (loss, gradients, terms)}, from the same key."""

    @jax.jit
    def run(state, inputs):
        return loss_and_gradients(TASKS, state, inputs, jax.random.key(1))

    found = {}
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        for name, batch in batches.items():
            loss, gradients, terms, _ = run(state, to_global(batch, mesh))
            found[name] = float(loss), flatten(to_host(gradients)), jax.device_get(terms)
    return found


def main(argv: list[str] | None = None) -> int:
    """Compares the meshes named with one device, loads on the others, and prints the result."""
    folder, *named = sys.argv[1:] if argv is None else argv
    directory, compared = Path(folder), named or list(MESHES)
    jax.config.update("jax_num_cpu_devices", 8)
    enable_compilation_cache()
    data = make_data(rows=ROWS, steps=STEPS)
    batches = {name: split_batch(next(data.batches(step)))[0] for name, step in BATCHES.items()}
    meshes = {name: make_mesh(MeshConfig(*sizes)) for name, sizes in MESHES.items()}
    meshes["alone"] = make_local_mesh()
    states: dict[str, Any] = {}
    checkpoints = TrainingCheckpoints(directory / "checkpoints")
    for name, mesh in meshes.items():
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            structs, shapes = shapes_on(mesh, batches["explicit"])
            if states:
                states[name] = checkpoints.restore(1, shapes)
                continue
            states[name] = create_state(TASKS, OPTIMIZER, structs, shapes, key=jax.random.key(0))
            checkpoints.save(1, states[name], {})
            checkpoints.wait()
    created = next(iter(states.values()))
    found = {n: measure(meshes[n], states[n], batches) for n in ("alone", *compared)}
    seen: dict[str, Any] = {"devices": len(jax.devices())}
    seen["explicit rows"] = {name: float(b["explicit"].mean()) for name, b in batches.items()}
    seen["terms"] = {
        batch: {term: float(total / count) for term, (total, count) in terms.items()}
        for batch, (_, _, terms) in found["alone"].items()
    }
    for name, state in states.items():
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(created), strict=True)
        kernel = flatten(state.frozen)[KERNEL]
        seen[name] = {
            "equal": all(np.array_equal(to_host(a), to_host(b)) for a, b in list(pairs)[1:]),
            "kernel": [str(kernel.dtype), part_shape(kernel)],
            "teacher": len(flatten(state.frozen[TEACHER])) == len(flatten(state.trainable)),
        }
        for batch, (loss, gradients, _) in found.get(name, {}).items():
            one, wanted, _ = found["alone"][batch]
            errors = relative(gradients, wanted)
            worst = max(errors, key=lambda path: errors[path])
            seen[name][batch] = {
                "loss": abs(loss - one) / abs(one), "gradient": errors[worst], "worst": worst,
            }  # fmt: skip
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    run_command(main)
