"""Feature extraction of a real corpus beside FunASR's own loop, with the same random weights.

`python benchmarks/extract.py --data EMODB` runs, one after another on the same
cores: half of the corpus through FunASR, the whole through our command in a fresh process with an
empty compilation cache, the other half through FunASR; then our command's shapes once more in a
second process. The last line is the ratio of audio seconds per second in steady state.

Shapes: T frames, D width, S = T + extra tokens.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")
PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}


def main(argv: list[str] | None = None) -> int:
    """Runs both sides and prints the comparison; returns 1 when the features disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of audio")
    parser.add_argument("--clips", type=int, help="only the first N of a fixed shuffle")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side (CPU)")
    parser.add_argument("--batch-seconds", type=float)
    parser.add_argument("--gpu", action="store_true", help="bfloat16 on one accelerator")
    parser.add_argument("--worker", choices=("run", "compile"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        return worker(arguments)
    with tempfile.TemporaryDirectory(prefix="extract-benchmark-") as folder:
        return compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    """The whole comparison, in this order; everything is written below `folder`."""
    files = choose_files(arguments.data, arguments.clips)
    if not arguments.gpu and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    write_inputs(folder, files)
    rate_before = matmul_rate(arguments.gpu)
    peer = Peer(folder, arguments)
    half = len(files) // 2
    names = list(files)
    peer.run({name: files[name] for name in names[: min(2, half)]}, folder / "warm")  # warm-up
    first = peer.run({name: files[name] for name in names[:half]}, folder / "peer")
    ours = run_worker("run", arguments, folder)
    second = peer.run({name: files[name] for name in names[half:]}, folder / "peer")
    peer.close()
    again = run_worker("compile", arguments, folder)
    rate_after = matmul_rate(arguments.gpu)
    worst = worst_difference(folder / "ours", folder / "peer")
    rate, seconds = (rate_before + rate_after) / 2, first["seconds"] + second["seconds"]
    report(ours, again, seconds, second["peak_gib"], rate, worst, arguments)
    return 0 if worst < (0.5 if arguments.gpu else 1e-3) else 1


def choose_files(data: Path, clips: int | None) -> dict[str, str]:
    """{id: path} of the audio below `data`, in a fixed random order so that halves are alike."""
    found = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"there is no audio below {data}")
    order = np.random.default_rng(0).permutation(len(found))[:clips]
    return {found[i].stem: str(found[i].resolve()) for i in order}


def write_inputs(folder: Path, files: dict[str, str]) -> None:
    """The list, a model directory with random weights, and the same weights in FunASR's layout."""
    import flax.linen as nn
    import jax

    from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig
    from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, write_model
    from conversions.emotion2vec_upstream import upstream_config
    from conversions.export import export

    (folder / "wav.scp").write_text("".join(f"{name} {path}\n" for name, path in files.items()))
    cfg = Emotion2VecConfig()
    audio, samples = np.zeros((1, 400), np.float32), np.array([400], np.int32)
    shapes = jax.eval_shape(Emotion2Vec(cfg).init, jax.random.key(0), audio, samples)["params"]
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: Any) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise / np.float32(np.sqrt(np.prod(leaf.shape[:-1][-2:])))
        if name in ("scale", "alibi_scale"):
            return 1 + np.float32(0.05) * noise
        return noise * np.float32(1.0 if name == "extra_tokens" else 0.02)

    params = jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes))
    description = ModelDescription("emotion2vec", dataclasses.asdict(cfg))
    write_model(folder / "model", description, leaves_of({"encoder": params}))
    export(folder / "model", folder / "peer.pt")
    upstream = upstream_config(dataclasses.asdict(cfg), None, False)["model"]
    upstream["normalize"] = True
    (folder / "peer.json").write_text(json.dumps(upstream))


class Peer:
    """FunASR in a process of its own, asked for parts of the corpus."""

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        command = [sys.executable, str(HERE / "peer_funasr.py"), str(folder / "peer.pt")]
        command += [str(folder / "peer.json"), "--threads", str(arguments.threads)]
        command += ["--gpu"] if arguments.gpu else []
        self._log = open(folder / "peer.log", "w")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            cwd=PROJECT,
        )  # fmt: skip
        self._answer()

    def run(self, files: dict[str, str], output: Path) -> dict[str, float]:
        """{"seconds", "peak_gib"} for extracting `files` into `output`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"files": files, "output": str(output)}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._log.flush()
        text = Path(self._log.name).read_text()[-1500:]
        raise SystemExit(f"FunASR's process ended; install the extra `bench`:\n{text}")

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def run_worker(what: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Our side in a fresh process; its figures, with "wall" from outside."""
    command = [sys.executable, __file__, "--worker", what, "--folder", str(folder)]
    command += ["--data", str(arguments.data), "--threads", str(arguments.threads)]
    command += ["--gpu"] if arguments.gpu else []
    if arguments.batch_seconds:
        command += ["--batch-seconds", str(arguments.batch_seconds)]
    environment = {**os.environ, "C2SER_COMPILATION_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *sys.path[1:]])
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"our side failed:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": wall}


def worker(arguments: argparse.Namespace) -> int:
    """In the fresh process: the extract command (or only its compilation), watched."""
    import resource

    import jax
    import jax.monitoring

    backend: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            backend.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    from c2ser_jax import inference
    from c2ser_jax.data.manifest import read_manifest
    from c2ser_jax.extraction.clips import Clip, estimate_lengths
    from c2ser_jax.extraction.features import extract_features
    from c2ser_jax.extraction.store import FeatureStore

    folder: Path = arguments.folder
    model = inference.load(
        folder / "model",
        dtype="bfloat16" if arguments.gpu else None,
        batch_seconds=arguments.batch_seconds,
    )
    backend.clear()
    engine = model.engine
    clips = [Clip.of(row) for row in read_manifest(folder / "wav.scp")]
    start = time.perf_counter()
    if arguments.worker == "run":
        with FeatureStore(folder / "ours", {}, resume=False) as store:
            failed = extract_features(engine, clips, store, granularity="frame")
            assert failed == 0, failed
    else:
        engine.prepare(engine.plan(estimate_lengths(clips, 2)[0].values()), ("frames",))
    seconds = time.perf_counter() - start
    done = engine.report
    lengths = estimate_lengths(clips, 2)[0].values()
    computed = {shape: shape.rows * n for shape, n in done.batches.items()}
    figures = {
        "seconds": seconds,
        "compile_seconds": sum(done.compile_seconds.values()),
        "backend_seconds": sum(backend),
        "compiled": len(done.compile_seconds),
        "shapes": [str(shape) for shape in done.shapes],
        "padding": done.padding,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "device": str(jax.devices()[0].device_kind),
        "audio_seconds": sum(lengths) / engine.model.sample_rate,
        "flops": sum(clip_flops(engine.model, n) for n in lengths),
        "computed_flops": sum(
            rows * clip_flops(engine.model, shape.samples) for shape, rows in computed.items()
        ),
    }
    print(json.dumps(figures))
    return 0


def clip_flops(cfg: Any, samples: int) -> float:
    """Operations of the matrix products for one clip alone, a multiply-add counted as two."""
    total, T, channels = 0.0, samples, 1
    for layer in cfg.conv_layers:
        T = (T - layer.kernel) // layer.stride + 1
        total += 2 * T * layer.kernel * channels * layer.channels
        channels = layer.channels
    D, S = cfg.width, T + cfg.extra_tokens
    position = cfg.position_depth * cfg.position_kernel * D * D / cfg.position_groups
    block = 2 * S * (4 + 2 * cfg.mlp_ratio) * D * D + 4 * S * S * D
    return total + 2 * T * (channels * D + position) + (cfg.depth + cfg.prenet_depth) * block


def matmul_rate(gpu: bool) -> float:
    """FLOP/s of XLA's own matrix product, measured in a process of its own."""
    command = [sys.executable, str(HERE / "matmul_rate.py")]
    command += ["--dtype", "bfloat16", "--rows", "131072"] if gpu else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    return 1e9 * float(done.stdout.split()[-1])


def worst_difference(ours: Path, theirs: Path) -> float:
    """Largest difference of any feature of any clip."""
    worst = 0.0
    for path in theirs.glob("*.npy"):
        one, other = np.load(ours / path.name), np.load(path)
        if one.shape != other.shape:
            raise SystemExit(f"{path.stem}: {one.shape} here, {other.shape} there")
        worst = max(worst, float(np.abs(one - other).max()))
    return worst


def report(
    ours: dict[str, Any],
    again: dict[str, Any],
    peer_seconds: float,
    peer_gib: float,
    rate: float,
    worst: float,
    arguments: argparse.Namespace,
) -> None:
    """Prints the figures, the ratio of steady states last."""
    audio, steady = ours["audio_seconds"], ours["seconds"] - ours["compile_seconds"]
    useful, computed = ours["flops"] / steady, ours["computed_flops"] / steady
    print(f"device          {ours['device']}, {'bfloat16' if arguments.gpu else 'float32'}")
    print(f"audio           {audio:.0f} s, {ours['flops'] / audio / 1e9:.1f} GFLOP per second")
    print(f"features        largest difference from FunASR's {worst:.1e}")
    print(f"shapes          {ours['compiled']} compiled: {', '.join(ours['shapes'])}")
    print(f"padding         {ours['padding']:.3f} samples computed per sample of audio")
    print(f"compilation     first process {ours['backend_seconds']:.1f} s in XLA, "
          f"{ours['compile_seconds']:.1f} s with tracing")  # fmt: skip
    share = again["backend_seconds"] / max(ours["backend_seconds"], 1e-9)
    print(f"                second process {again['backend_seconds']:.2f} s in XLA ({share:.1%}), "
          f"{again['compile_seconds']:.1f} s with tracing")  # fmt: skip
    print(f"peak memory     {ours['peak_gib']:.2f} GiB, FunASR {peer_gib:.2f} GiB")
    print(f"matrix product  XLA alone {rate / 1e9:.0f} GFLOP/s; extraction reaches "
          f"{computed / rate:.1%} of it, {useful / rate:.1%} without the padding")  # fmt: skip
    peak = next((v for name, v in PEAK_BF16_FLOPS.items() if name in ours["device"]), None)
    if arguments.gpu and peak:
        print(f"MFU             {useful / peak:.1%} of {peak / 1e12:.0f} TFLOP/s")
    print(f"FunASR          {peer_seconds:.1f} s, {audio / peer_seconds:.2f} x real time")
    print(f"ours, steady    {steady:.1f} s, {audio / steady:.2f} x real time")
    print(f"ours, whole     {ours['wall']:.1f} s with start-up and first compilation, ratio to "
          f"FunASR's loop {peer_seconds / ours['wall']:.2f}; start-up and compilation of a "
          f"second process take {again['wall']:.1f} s")  # fmt: skip
    print(f"ratio {peer_seconds / steady:.2f}")


if __name__ == "__main__":
    sys.exit(main())
