"""Memory of a training step of C2SER at 7 B, item by item, as the compiler plans it.

`python benchmarks/c2ser_memory.py` builds the state of configs/published/c2ser_explicit.py from
shapes alone, compiles a step for the CPU, and reads the compiler's own plan: on one device, on
eight (virtual) ones with the state split over all (`fsdp` 8), and as two copies of layers split in
four (`data` 2 × `tensor` 4); with the encoder trained, as published, and without. Nothing is
allocated; a layout takes two compilations, of about a minute each. Published figures are those of
REAL_SIZES.md: a microbatch of 3 clips of 10 s and 60 answer tokens on each group of devices.

`--run` builds the state for real, on one GPU, with random weights, takes one step, and prints the
measured peak beside that compiler's plan.
"""

import argparse
import collections
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from c2ser_jax.config import CotStage, load_run  # noqa: E402
from c2ser_jax.cot_stages import answering_loop  # noqa: E402
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh  # noqa: E402
from c2ser_jax.parallel.rules import (  # noqa: E402
    RULES,
    batch_parts,
    batch_sharding,
    replicated,
)
from c2ser_jax.tasks.cot import ChainOfThought  # noqa: E402
from c2ser_jax.tasks.trainable import Trainable  # noqa: E402
from c2ser_jax.training import optimizer as optimizers  # noqa: E402
from c2ser_jax.training.loop import jitted_step, planned_state  # noqa: E402
from c2ser_jax.training.state import TrainState, flatten  # noqa: E402

CONFIG = ROOT / "configs" / "published" / "c2ser_explicit"
DEVICES = 8
LAYOUTS = {"1 device": None, "fsdp 8": (1, 8, 1), "data 2 × tensor 4": (2, 1, 4)}
CLIPS, SECONDS, PROMPT, ANSWER = 3, 10, 20, 60
LIMIT = 80.0  # GB
LLM, REST = "frozen language model", "other frozen parts and tables"
TRAINED, MOMENTS = "trained parameters", "AdamW moments"
MOVING, OTHER = "gradients, activations, logits", "batch, and results that reuse no argument"
TOGETHER, COPIES = "together", "set apart: XLA:CPU's float32 copies"
PUBLISHED: dict[str, dict[str, float]] = {
    "link_and_encoder_and_lora": {
        LLM: 15.23, TRAINED: 1.61, MOMENTS: 3.22, MOVING: 1.61 + 0.43 + 1.19 + 0.63,
        TOGETHER: 23.9,
    },
    "link_and_lora": {
        LLM: 15.23, REST: 0.61, TRAINED: 0.39, MOMENTS: 0.77, MOVING: 0.39 + 0.43 + 1.19 + 0.63,
        TOGETHER: 23.9 - 6.43 + 2.16,
    },
}  # fmt: skip
"""GB; 29,373,441 trained parameters there are never used, and this model doesn't hold them."""

GB = 1e9
HOISTING = "while-loop-invariant-code-motion,while-loop-expensive-invariant-code-motion"
IN_PLACE = {"xla_disable_hlo_passes": HOISTING, "xla_backend_optimization_level": 0}
AS_IT_IS = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A step and the shapes, with their places, of all that it is given."""

    mesh: Mesh
    state: TrainState
    arguments: tuple[Any, ...]
    step: Any


def published_step(trainable: str, mesh: Mesh) -> Planned:
    """The step of stage 1 at 7 B on a mesh, with `trainable` in place of what is published."""
    run = load_run(CONFIG)
    assert run.explicit is not None and run.c2ser is not None
    task_cfg: Any = dataclasses.replace(run.explicit.task, trainable=trainable)
    task = ChainOfThought(task_cfg, run.c2ser.model(run.encoder))
    return planned_step(task, run.explicit, mesh, samples=16000 * SECONDS)


def planned_step(task: ChainOfThought, stage: CotStage, mesh: Mesh, *, samples: int) -> Planned:
    """The step that the trainer would run on a mesh, for CLIPS clips in each microbatch."""
    batch = _batch(CLIPS * batch_parts(mesh) * stage.loop.microbatches, samples, mesh)
    optimizer = optimizers.build(stage.optimizer, stage.loop.steps)
    schedule = optimizers.learning_rate_schedule(stage.optimizer, stage.loop.steps)
    cfg = answering_loop(stage.loop, task)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        state = planned_state(task, cfg, optimizer, batch, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    healthy, stop, key = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))
        for shape, dtype in (((), bool), ((mesh.size,), bool), (key.shape, key.dtype))
    )
    jitted = jitted_step(task, cfg, optimizer, schedule, state, mesh)
    return Planned(mesh, state, (state, healthy, batch, stop, key), jitted)


def _batch(rows: int, samples: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    columns = {
        "audio": (samples,), "audio_samples": (), "prompt": (PROMPT,), "prompt_tokens": (),
        "answer": (ANSWER,), "answer_tokens": (),
    }  # fmt: skip
    kinds = {"audio": jnp.float32}
    return {
        name: jax.ShapeDtypeStruct(
            (rows, *shape), kinds.get(name, jnp.int32), sharding=batch_sharding(mesh)
        )
        for name, shape in columns.items()
    }


def lowered(planned: Planned) -> Any:
    """The step, traced and ready to be compiled."""
    with jax.set_mesh(planned.mesh), nn.logical_axis_rules(RULES):
        return planned.step.lower(*planned.arguments)


def measure(planned: Planned) -> dict[str, float]:
    """GB on each device of every item, from compiling the step for the CPU in two ways."""
    program, state = lowered(planned), planned.state
    plan, hoisted = (
        program.compile(compiler_options=options).memory_analysis()
        for options in (IN_PLACE, AS_IT_IS)
    )
    frozen = flatten(state.frozen)
    llm = {path: leaf for path, leaf in frozen.items() if path.startswith("llm/")}
    items = {
        LLM: device_bytes(llm) / GB,
        REST: (device_bytes(frozen) - device_bytes(llm)) / GB,
        TRAINED: device_bytes(state.trainable) / GB,
        MOMENTS: device_bytes(state.opt) / GB,
        MOVING: plan.temp_size_in_bytes / GB,
    }
    items[OTHER] = plan_bytes(plan) / GB - sum(items.values())
    items[TOGETHER] = sum(items.values())
    items[COPIES] = (hoisted.temp_size_in_bytes - plan.temp_size_in_bytes) / GB
    return items


def device_bytes(leaves: Any) -> int:
    """Bytes on one device of a tree of shapes with places."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(leaves)
    )


def unsplit(state: TrainState, axis: str = "fsdp") -> dict[str, int]:
    """{kind of parameter: bytes on each device} of what a mesh axis does not split, largest first.

    With trained parameters count their two moments; layers that are scanned are one parameter.
    """
    found: collections.Counter[str] = collections.Counter()
    for words, tree, copies in (("frozen", state.frozen, 1), ("trained", state.trainable, 3)):
        for path, leaf in flatten(tree).items():
            if axis not in jax.tree.leaves(tuple(leaf.sharding.spec)):
                part, *_, name = path.split("/")
                found[f"{words} {part}/…/{name}"] += copies * device_bytes(leaf)
    return dict(found.most_common())


def verdict(trainable: str, items: dict[str, float]) -> str:
    """One sentence: whether the step fits a device of LIMIT GB, by the numbers of one device."""
    needed, copies = items[TOGETHER], items[COPIES]
    fits = "fits" if needed <= LIMIT else "does not fit"
    return (
        f"The LoRA step that trains {trainable} {fits} {LIMIT:.0f} GB on one device: it needs "
        f"{needed:.1f} GB ({needed + copies:.1f} GB with XLA:CPU's copies)."
    )


def explanation() -> str:
    """What is set apart and why, and what is not."""
    cfg = load_run(CONFIG).c2ser
    assert cfg is not None
    head = 4 * cfg.llm.vocabulary * cfg.llm.width / GB
    return (
        "XLA:CPU multiplies in float32 alone and widens the bfloat16 weights of all layers before "
        "the loop over them: what that costs is set apart, as no accelerator does it; the copies "
        f"of one layer and of the head ({head:.2f} GB) remain in the figures."
    )


def random_state(shapes: TrainState) -> TrainState:
    """A state of random weights and empty moments.

    The largest leaves are made first, so that making them needs less than the step does.
    """

    def make(leaf: Any, draw: bool) -> jax.Array:
        def weights() -> jax.Array:
            if draw:
                return 0.02 * jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.jit(weights, out_shardings=leaf.sharding)()

    flat, tree = jax.tree.flatten_with_path(shapes)
    made: dict[int, jax.Array] = {}
    for place in sorted(range(len(flat)), key=lambda i: -device_bytes(flat[i][1])):
        path, leaf = flat[place]
        made[place] = make(leaf, path[0].name in ("trainable", "frozen"))
    return jax.tree.unflatten(tree, [made[place] for place in range(len(flat))])


def run_step(planned: Planned) -> dict[str, float]:
    """Peak GB of a step that is really taken: planned, measured, and measured before the step."""
    program = lowered(planned).compile()
    state, given = random_state(planned.state), random_arguments(planned)
    before = peak_bytes(planned.mesh)
    _, healthy, report = jax.block_until_ready(program(state, *given))
    print(f"one step taken: loss {float(report['loss']):.3f}, healthy {bool(healthy)}")
    return {
        "planned": plan_bytes(program.memory_analysis()) / GB,
        "measured": peak_bytes(planned.mesh) / GB,
        "before": before / GB,
    }


def random_arguments(planned: Planned) -> tuple[Any, ...]:
    """What a step takes beside its state: noise, whole prompts and answers of token 1."""
    _, _, batch, stop, _ = planned.arguments
    made = {name: jnp.ones(leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    made["audio"] = 0.1 * jax.random.normal(jax.random.key(1), batch["audio"].shape)
    for name, column in (("audio_samples", "audio"), ("prompt_tokens", "prompt"),
                         ("answer_tokens", "answer")):  # fmt: skip
        made[name] = jnp.full(batch[name].shape, batch[column].shape[1], jnp.int32)
    made = jax.device_put(made, batch_sharding(planned.mesh))
    return jnp.bool_(True), made, jnp.zeros(stop.shape, bool), jax.random.key(2)


def plan_bytes(plan: Any) -> int:
    """Bytes on each device at the peak of a compiler's plan."""
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return kept + plan.temp_size_in_bytes


def peak_bytes(mesh: Mesh) -> float:
    """The most bytes that were in use on the mesh's first device so far; nan on a CPU."""
    return (mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use", math.nan)


def run(trainable: str) -> int:
    """Takes one real step on one GPU. Exits with a sentence where there is none."""
    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"--run builds the 7 B state for real and needs a GPU, but JAX runs on a "
            f"{jax.default_backend()} here: leave --run out to see the compiler's plan"
        )
    found = run_step(published_step(trainable, make_local_mesh()))
    fits = "fits" if found["measured"] <= LIMIT else "does not fit"
    print(
        f"{trainable} on one {jax.devices()[0].device_kind}: {found['planned']:.2f} GB planned, "
        f"{found['measured']:.2f} GB measured at the peak ({found['before']:.2f} GB before the "
        f"step, while its state was made); it {fits} {LIMIT:.0f} GB"
    )
    return 0 if found["measured"] <= LIMIT else 1


def show(trainable: str, layouts: list[str]) -> bool:
    """Prints a column per layout, GB on each device; whether the step fits one device."""
    steps = {}
    for name in layouts:
        sizes = LAYOUTS[name]
        mesh = make_mesh(MeshConfig(*sizes)) if sizes else make_local_mesh()
        steps[name] = published_step(trainable, mesh)
    found = {name: measure(step) for name, step in steps.items()}
    print(f"\n{trainable}, GB on each device | published, 1 device | " + " | ".join(found))
    for item in found[layouts[0]]:
        number = PUBLISHED.get(trainable, {}).get(item)
        cells = ["" if number is None else f"{number:.2f}"]
        print(" | ".join([item, *cells, *(f"{items[item]:.2f}" for items in found.values())]))
    for name, step in steps.items():
        if step.mesh.shape["fsdp"] > 1:
            rest = unsplit(step.state)
            listed = ", ".join(f"{kind} {size / 1e6:.2f}" for kind, size in rest.items())
            print(f"{name} leaves {sum(rest.values()) / 1e6:.1f} MB whole on each device: {listed}")
    one = found.get("1 device")
    if one is not None:
        print(verdict(trainable, one))
    return one is None or one[TOGETHER] <= LIMIT


def main() -> int:
    """Prints plans, or with `--run` what a real step needs; 1 when a step doesn't fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layout", choices=LAYOUTS, help="only this one")
    parser.add_argument(
        "--trainable", choices=get_args(Trainable), help="only this choice of parts"
    )
    parser.add_argument("--run", action="store_true", help="take one real step, on one GPU")
    arguments = parser.parse_args()
    choices = [arguments.trainable] if arguments.trainable else list(PUBLISHED)
    if arguments.run:
        return run(choices[0])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    layouts = [arguments.layout] if arguments.layout else list(LAYOUTS)
    fitting = [show(trainable, layouts) for trainable in choices]
    print(explanation())
    return 0 if all(fitting) else 1


if __name__ == "__main__":
    raise SystemExit(main())
