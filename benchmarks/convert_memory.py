"""Peak memory of converting a checkpoint of more than 1 GB, beside its largest stored parameter.

Writes a random emotion2vec+ large checkpoint with Adam moments (1.9 GB, as the published file) to
a temporary folder, converts and exports it in processes of their own, prints how far each peak
lay above the memory after the imports, and removes everything. Needs about 6 GB of disk.

python benchmarks/convert_memory.py [--width 1024] [--depth 8] [--folder DIR]
"""

import argparse
import dataclasses
import math
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from conversions.emotion2vec import TABLE, target_shapes
from conversions.emotion2vec_upstream import upstream_config
from conversions.torch_writer import OutTensor, write_torch

CLASSES = 9
LIMIT = 1.5

_CHILD = """
import sys
import conversions.__main__ as command

def peak():
    try:
        with open("/proc/self/status") as file:
            return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024
    except FileNotFoundError:  # macOS, where the unit is a byte
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
code = command.main(sys.argv[1:])
print("PEAK", before, peak())
sys.exit(code)
"""


def write_checkpoint(
    path: Path, cfg: Emotion2VecConfig, *, moments: bool = True, constant: bool = False
) -> dict[str, tuple[int, ...]]:
    """Writes weights in FunASR's layout, one in memory at a time; returns our parameters' shapes.

    Random weights, or with `constant` a quick 0.5; `moments` adds Adam's state.
    """
    shapes = target_shapes(cfg, CLASSES, None)
    state: OrderedDict[str, OutTensor] = OrderedDict()

    def random(shape: tuple[int, ...], seed: int) -> OutTensor:
        def make() -> np.ndarray:
            if constant:
                return np.full(shape, 0.5, np.float32)
            return np.random.default_rng(seed).standard_normal(shape, np.float32) * 0.02

        return OutTensor(shape, np.dtype(np.float32), make)

    for target, shape in shapes.items():
        for name, source_shape, _ in TABLE.sources(target, shape):
            prefix = "" if name.startswith("proj.") else "d2v_model."
            state[prefix + name] = random(source_shape, len(state))
    model = dataclasses.asdict(cfg)
    tree = {"cfg": upstream_config(model, None, True), "model": state}
    tree["labels"] = [f"class_{i}" for i in range(CLASSES)]
    if moments:
        tree["last_optimizer_state"] = {
            "state": {
                i: {
                    "step": 3,
                    "exp_avg": random(t.shape, -i % 997),
                    "exp_avg_sq": random(t.shape, i),
                }
                for i, t in enumerate(state.values())
            }
        }
    write_torch(path, tree)
    return shapes


def measure(arguments: list[str]) -> tuple[float, int]:
    """(seconds, bytes of peak memory above the imports) of one conversions command."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, *arguments]
    root = Path(__file__).resolve().parent.parent
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stdout + ran.stderr)
    _, before, after = ran.stdout.strip().splitlines()[-1].split()
    return time.perf_counter() - begin, int(after) - int(before)


def main(argv: list[str] | None = None) -> int:
    """Prints the measurements; 0 when the conversion stays within 1.5 x the largest parameter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    options = parser.parse_args(argv)
    cfg = Emotion2VecConfig(width=options.width, depth=options.depth, heads=options.width // 64)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file, model, back = (Path(folder) / name for name in ("model.pt", "model", "back.pt"))
        shapes = write_checkpoint(file, cfg)
        largest = max(math.prod(shape) * 4 for shape in shapes.values())
        print(f"checkpoint {file.stat().st_size / 1e9:.2f} GB, largest leaf {largest / 1e6:.0f} MB")
        commands = {
            "convert": ["emotion2vec", "--from", str(file), "--to", str(model)],
            "export": ["export", "emotion2vec", "--from", str(model), "--to", str(back)],
        }
        ratios = {}
        for name, arguments in commands.items():
            seconds, memory = measure(arguments)
            ratios[name] = memory / largest
            print(
                f"{name}: {seconds:.1f} s, {memory / 1e6:.0f} MB above the imports, "
                f"{ratios[name]:.2f} x the largest leaf"
            )
    print(f"ratio {ratios['convert']:.2f}")
    return 0 if ratios["convert"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
