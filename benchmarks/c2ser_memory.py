"""Memory of a training step of C2SER at 7 B, item by item, as the compiler plans it.

`python benchmarks/c2ser_memory.py` builds the state of configs/published/c2ser_explicit.py from
shapes alone, compiles a step for the CPU, and reads the compiler's own plan: on one device, on
eight (virtual) ones with the state split over all (`fsdp` 8), and as two copies of layers split in
four (`data` 2 × `tensor` 4). Nothing is allocated; a compilation takes a minute. Published figures
are those of REAL_SIZES.md: a microbatch of 3 clips of 10 s and 60 answer tokens on each group of
devices.

XLA:CPU multiplies in float32 only, so it keeps a float32 copy of every bfloat16 weight (and of one
layer's at a time), which accelerators don't need: those buffers are set apart.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONFIG = ROOT / "configs" / "published" / "c2ser_explicit"
LAYOUTS = {"1 device": (1, 1, 1), "fsdp 8": (1, 8, 1), "data 2 × tensor 4": (2, 1, 4)}
CLIPS, SECONDS, PROMPT, ANSWER = 3, 10, 20, 60
PUBLISHED = {
    "frozen language model": 15.23,
    "trained parameters": 1.61,
    "AdamW moments": 3.22,
    "everything else: gradients, activations, logits": 1.61 + 0.43 + 1.19 + 0.63,
    "together": 23.9,
}
"""GB; 402,163,201 parameters there, of which this model lacks 29,373,441 that are never used."""

GB = 1e9
_SLOT = re.compile(r"\(\s*\d+%\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)$")
_SHAPE = re.compile(r"(?:(\d+)×)?(\w+)\[([\d,]*)\]")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "s64": 8, "u64": 8}


def measure(layout: str, folder: Path) -> dict[str, float]:
    """GB per device of every item, from compiling the step in this process."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from c2ser_jax.config import load_run
    from c2ser_jax.parallel.mesh import MeshConfig, make_mesh
    from c2ser_jax.parallel.rules import RULES, batch_parts, batch_sharding, replicated
    from c2ser_jax.tasks.cot import ChainOfThought
    from c2ser_jax.training import optimizer as optimizers
    from c2ser_jax.training.state import flatten, state_shapes
    from c2ser_jax.training.step import make_train_step

    jax.config.update("jax_num_cpu_devices", math.prod(LAYOUTS[layout]))
    run = load_run(CONFIG)
    stage = run.explicit
    assert stage is not None and run.c2ser is not None
    task = ChainOfThought(stage.task, run.c2ser.model(run.encoder))
    mesh = make_mesh(MeshConfig(*LAYOUTS[layout]))
    rows = CLIPS * batch_parts(mesh) * stage.loop.microbatches

    def column(shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=batch_sharding(mesh))

    batch = {
        "audio": column((16000 * SECONDS,), jnp.float32), "audio_samples": column(()),
        "prompt": column((PROMPT,)), "prompt_tokens": column(()),
        "answer": column((ANSWER,)), "answer_tokens": column(()),
    }  # fmt: skip
    optimizer = optimizers.build(stage.optimizer, stage.loop.steps)
    schedule = optimizers.learning_rate_schedule(stage.optimizer, stage.loop.steps)
    whole = replicated(mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        state = state_shapes(
            task, optimizer, batch, mesh=mesh, trainable=task.trainable,
            frozen_dtype=stage.loop.frozen_dtype, frozen_dtype_paths=stage.loop.frozen_dtype_paths,
        )  # fmt: skip
        step = make_train_step(
            task, optimizer, learning_rate=schedule, microbatches=stage.loop.microbatches
        )
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, whole, whole))
        plain = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=whole)  # noqa: E731
        key = jax.eval_shape(lambda: jax.random.key(0))
        compiled = jitted.lower(
            state, plain((), bool), batch, plain((mesh.size,), bool), plain(key.shape, key.dtype)
        ).compile()
    plan = compiled.memory_analysis()
    assert plan is not None

    def size(leaves: Any) -> float:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(leaves)
        ) / GB  # fmt: skip

    frozen = flatten(state.frozen)
    halves = [
        leaf.sharding.shard_shape(leaf.shape)
        for leaf in frozen.values()
        if leaf.dtype == jnp.bfloat16
    ] + [leaf.shape for leaf in frozen.values() if leaf.dtype == jnp.bfloat16]
    temporaries, needed = plan.temp_size_in_bytes / GB, without_copies(folder, halves)
    items = {
        "frozen language model": size({p: v for p, v in frozen.items() if p.startswith("llm/")}),
        "acoustic encoder and tables, frozen": size(
            {p: v for p, v in frozen.items() if not p.startswith("llm/")}
        ),
        "trained parameters": size(state.trainable),
        "AdamW moments": size(state.opt),
        "everything else: gradients, activations, logits": temporaries * needed,
    }
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    held = sum(items.values()) - temporaries * needed
    items["batch, and results that reuse no argument"] = kept / GB - held
    items["together"] = sum(items.values())
    items["set apart: float32 copies of bfloat16 weights"] = temporaries * (1 - needed)
    return items


def without_copies(folder: Path, halves: list[tuple[int, ...]]) -> float:
    """The share of the temporaries that is needed without float32 copies of frozen weights.

    halves: shapes of the bfloat16 weights; one layer's is a copy, too. The compiler's report lists
    the places of its plan with the shapes of all values that take turns there; a place counts as
    its largest value that is no copy.
    """
    (report,) = folder.glob("*train_step*memory-usage-report.txt")
    dims = {tuple(sorted(shape)) for shape in halves}
    dims |= {tuple(sorted(shape[1:])) for shape in halves if len(shape) == 3}
    places: list[tuple[float, float]] = []
    for part in report.read_text().split("cumulative_size;"):
        found = [_place(line, dims) for line in part.splitlines()]
        places = max(places, [place for place in found if place], key=len)  # the temporaries'
    return sum(needed for _, needed in places) / sum(size for size, _ in places)


def _place(line: str, dims: set[tuple[int, ...]]) -> tuple[float, float] | None:
    """(bytes, bytes without copies) of a line of the report; None for other lines."""
    found = _SLOT.search(line)
    if found is None:
        return None
    size, sizes = float(found[1]) * _UNITS[found[2]], [0.0]
    for _, dtype, shape in _SHAPE.findall(found[3]):
        lengths = tuple(int(n) for n in shape.split(",") if n)
        if dtype != "f32" or tuple(sorted(lengths)) not in dims:
            sizes.append(math.prod(lengths) * _WIDTHS.get(dtype, 4))
    return size, min(size, max(sizes))


def in_a_process(layout: str) -> dict[str, float]:
    """What `measure` finds in a process of its own, whose compiler writes its report."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_module_re=.*train_step.*"
        environment = {**os.environ, "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}
        done = subprocess.run(
            [sys.executable, __file__, "--layout", layout, "--folder", folder],
            env={**environment, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True,
            check=True,
        )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Prints one column per layout, GB on each device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=LAYOUTS, help="only this one")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.layout, arguments.folder)))
        return 0
    names = [arguments.layout] if arguments.layout else list(LAYOUTS)
    found = {name: in_a_process(name) for name in names}
    print("GB on each device | published, 1 device | " + " | ".join(names))
    for item in found[names[0]]:
        published = f"{PUBLISHED[item]:.2f}" if item in PUBLISHED else ""
        row = " | ".join(f"{found[name][item]:.2f}" for name in names)
        print(f"{item} | {published} | {row}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
