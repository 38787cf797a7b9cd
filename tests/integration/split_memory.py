"""Prints as one JSON line what a state takes on each device, by the mesh that it is split over.

python -m tests.integration.split_memory
"""

import dataclasses
import json

import jax

from benchmarks.c2ser_memory import planned_step, unsplit
from c2ser_jax.config import CotStage
from c2ser_jax.parallel import rules
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh
from c2ser_jax.tasks.cot import ChainOfThought
from c2ser_jax.training.loop import LoopConfig
from tests.tiny_answers import MODEL, TASK

EIGHT = MeshConfig(data=1, fsdp=8, tensor=1)
TASKS = ChainOfThought(dataclasses.replace(TASK, distillation_weight=0.0), MODEL)
STAGE = CotStage(loop=LoopConfig(frozen_dtype="bfloat16"))


def seen(mesh) -> dict[str, int]:
    """The compiler's count of a state's bytes as arguments, and what the axis leaves whole."""
    state = planned_step(TASKS, STAGE, mesh, samples=8000).state
    program = jax.jit(lambda state: 0, keep_unused=True).lower(state).compile()
    plan = program.memory_analysis()
    assert plan is not None
    return {"arguments": plan.argument_size_in_bytes, "unsplit": sum(unsplit(state).values())}


def main() -> int:
    """Measures one device, eight, and eight under rules that split nothing over `fsdp`."""
    jax.config.update("jax_num_cpu_devices", 8)
    found = {"alone": seen(make_local_mesh()), "fsdp 8": seen(make_mesh(EIGHT))}
    table = [(name, None if axes == "fsdp" else axes) for name, axes in rules.RULES]
    rules.RULES = tuple(table)
    found["no rule"] = seen(make_mesh(EIGHT))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
