"""Peak memory of converting a large checkpoint, beside its largest stored parameter.

Writes a random checkpoint to a temporary folder, converts and exports it in processes of their own,
prints how far each peak lay above the memory after the imports, and removes everything.
emotion2vec: as large as the published emotion2vec+ large, with Adam moments (1.9 GB; about 6 GB of
disk). qwen2: bfloat16 shards of 5 GB (15 GB of disk). c2ser: a whole checkpoint beside these shards
(5.3 GB and 5 GB; 35 GB of disk), with adapters kept and merged.

python benchmarks/convert_memory.py [--family c2ser] [--width 1024] [--depth 8] [--folder DIR]
"""

import argparse
import dataclasses
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.large_checkpoints import ACOUSTIC, write_c2ser, write_qwen2  # noqa: E402
from c2ser_jax.models.c2ser import C2serConfig  # noqa: E402
from c2ser_jax.models.connector import ConnectorConfig  # noqa: E402
from c2ser_jax.models.emotion2vec import Emotion2VecConfig  # noqa: E402
from c2ser_jax.models.lora import LoraConfig  # noqa: E402
from c2ser_jax.models.qwen2 import Qwen2Config  # noqa: E402
from c2ser_jax.models.whisper import WhisperEncoderConfig  # noqa: E402
from conversions import c2ser_names, qwen2  # noqa: E402
from conversions.emotion2vec import TABLE, target_shapes  # noqa: E402
from conversions.emotion2vec_upstream import upstream_config  # noqa: E402
from conversions.torch_writer import OutTensor, write_torch  # noqa: E402

CLASSES = 9
LIMIT = 1.5
LARGE = C2serConfig(
    acoustic=ACOUSTIC,
    encoder=WhisperEncoderConfig(depth=6),
    connector=ConnectorConfig(output_width=2048),
    llm=Qwen2Config(
        width=2048, depth=24, heads=16, key_value_heads=2, mlp_width=11008, lora=LoraConfig(),
    ),
)  # fmt: skip
"""C2SER with a language model of 2.5 billion parameters."""

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


def large_models(family: str, folder: Path, cfg: C2serConfig, shards: int) -> tuple[int, int]:
    """Writes, converts and exports a qwen2 or a c2ser; returns (largest leaf's bytes, worst peak).

    A leaf of the language model is stored in bfloat16, any other in float32.
    """
    begin = time.perf_counter()
    if family == "qwen2":
        cfg = dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, lora=None))
        write_qwen2(folder / "source", cfg.llm, shards)
        told, ways = {"--from": folder / "source"}, [[]]
        shapes = {f"llm/{path}": shape for path, shape in qwen2.target_shapes(cfg.llm).items()}
    else:
        (folder / "source").mkdir()
        told, ways = write_c2ser(folder / "source", cfg, shards), [[], ["--lora", "merge"]]
        shapes = c2ser_names.target_shapes(cfg)
    files = sorted(path for path in (folder / "source").rglob("*") if path.is_file())
    print(f"wrote {len(files)} files in {time.perf_counter() - begin:.0f} s:")
    for path in files:
        if path.stat().st_size > 1 << 24:
            print(f"  {path.relative_to(folder)}: {path.stat().st_size / 1e9:.2f} GB")
    largest = max(
        math.prod(shape) * (2 if path.startswith("llm/") and "lora_" not in path else 4)
        for path, shape in shapes.items()
    )
    print(f"largest leaf {largest / 1e6:.0f} MB")
    source = [str(word) for pair in told.items() for word in pair]
    worst = 0
    for way in ways:
        model, back = folder / "model", folder / "back"
        commands = {
            "convert": [family, *source, "--to", str(model), *way],
            "export": ["export", family, "--from", str(model), "--to", str(back)],
        }
        for name, arguments in commands.items():
            seconds, memory = measure(arguments)
            print(
                f"{name} {' '.join(way)}: {seconds:.0f} s, {memory / 1e6:.0f} MB above the "
                f"imports, {memory / largest:.2f} x the largest leaf"
            )
            worst = max(worst, memory)
        shutil.rmtree(model)
        shutil.rmtree(back)
    return largest, worst


def main(argv: list[str] | None = None) -> int:
    """Prints the measurements; 0 when they stay within what conversions may use.

    That is 1.5 x the largest stored parameter, and for qwen2 and c2ser 1 GB on top of it.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=("emotion2vec", "qwen2", "c2ser"),
                        default="emotion2vec")  # fmt: skip
    parser.add_argument("--width", type=int, default=1024, help="of emotion2vec")
    parser.add_argument("--depth", type=int, default=8, help="of emotion2vec")
    parser.add_argument("--shards", type=int, default=4, help="of the language model")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.family == "emotion2vec":
            return measure_emotion2vec(Path(folder), options.width, options.depth)
        largest, worst = large_models(options.family, Path(folder), LARGE, options.shards)
    allowed = LIMIT * largest + (1 << 30)
    print(f"worst {worst / 1e6:.0f} MB of {allowed / 1e6:.0f} MB")
    return 0 if worst <= allowed else 1


def measure_emotion2vec(folder: Path, width: int, depth: int) -> int:
    """Prints what emotion2vec needs; 0 when converting stays within the limit."""
    cfg = Emotion2VecConfig(width=width, depth=depth, heads=width // 64)
    file, model, back = (folder / name for name in ("model.pt", "model", "back.pt"))
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
