"""One pretraining step of Emotion2Vec-S at its published size beside the machine's own rate.

`python benchmarks/pretrain.py` measures, on random audio, the whole step the trainer runs (student
forward and backward over all clones, teacher, three losses, AdamW, moving average) in float32 and
XLA's matrix product in the same process, interleaved; the last line is the share of that rate.
`--gpu` runs in bfloat16, reports the share of the accelerator's peak and, measured before it in a
process of its own, the same step in torch with scaled_dot_product_attention; `--peer` adds torch on
the CPU, too.

Shapes: B utterances, C clones, R = B * C, N samples, T frames, K kept frames, S sequence, D width.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.matmul_rate import ACCELERATOR_ROWS, measure_matmul_rate  # noqa: E402
from c2ser_jax.huge_pages import use_huge_pages  # noqa: E402
from c2ser_jax.models.attention import IMPLEMENTATIONS  # noqa: E402
from c2ser_jax.models.emotion2vec import Emotion2VecConfig  # noqa: E402
from c2ser_jax.parallel.mesh import make_local_mesh  # noqa: E402
from c2ser_jax.tasks.pretrain import Pretrain, PretrainConfig  # noqa: E402
from c2ser_jax.training.optimizer import (  # noqa: E402
    OptimizerConfig,
    build,
    learning_rate_schedule,
)
from c2ser_jax.training.state import create_state, state_shapes  # noqa: E402
from c2ser_jax.training.step import annealed_decay, make_train_step  # noqa: E402

PEAK_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; the last line is `share 0.43`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="utterances of a batch (4; 64 with --gpu)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each")
    parser.add_argument("--steps", type=int, help="measured steps (5; 20 with --gpu)")
    parser.add_argument("--gpu", action="store_true", help="bfloat16 on one accelerator")
    parser.add_argument(
        "--peer",
        action=argparse.BooleanOptionalAction,
        help="also the same step in torch (the default with --gpu)",
    )
    parser.add_argument(
        "--attention",
        choices=IMPLEMENTATIONS,
        default="xla",
        help="cudnn (GPU) has no dropout on the attention's weights, so none is drawn then",
    )
    arguments = parser.parse_args(argv)
    rows = arguments.rows or (64 if arguments.gpu else 4)
    steps = arguments.steps or (20 if arguments.gpu else 5)
    dtype = "bfloat16" if arguments.gpu else "float32"
    encoder = dataclasses.replace(
        Emotion2VecConfig(),
        normalize_waveform=False,
        dtype=dtype,
        attention_implementation=arguments.attention,
    )
    if arguments.attention == "cudnn":
        encoder = dataclasses.replace(encoder, attention_dropout=0.0)
    cfg = PretrainConfig()
    samples = int(arguments.seconds * 16000)
    peer = None
    if (
        arguments.gpu if arguments.peer is None else arguments.peer
    ):  # first, while nothing else holds the device's memory
        peer = peer_seconds(encoder, cfg, rows, samples, steps, arguments.gpu)
    device = jax.devices()[0]
    if arguments.gpu and device.platform == "cpu":
        raise SystemExit("--gpu was given, but jax sees no accelerator here")
    flops = step_flops(encoder, cfg.data2vec, rows, samples)
    result = measure(encoder, cfg, rows, samples, steps)
    report(device.device_kind, dtype, rows, arguments.seconds, flops, result)
    print(f"attention      {arguments.attention}")
    if peer is not None:
        print(f"torch          {peer:.3f} s a step, ratio {peer / result['step']:.2f}")
    share = flops / result["step"] / result["rate"]
    peak = next((v for name, v in PEAK_BF16_FLOPS.items() if name in device.device_kind), None)
    if arguments.gpu and peak:
        print(f"MFU            {flops / result['step'] / peak:.1%} of {peak / 1e12:.0f} TFLOP/s")
    print(f"share {share:.2f}")
    return 0


def measure(encoder, cfg: PretrainConfig, rows: int, samples: int, steps: int) -> dict[str, Any]:
    """Seconds of compilation and of the fastest step, and the matrix-product rate beside it."""
    task = Pretrain(cfg, encoder)
    optimizer_cfg = OptimizerConfig(learning_rate=7.5e-5, warmup_steps=10)
    optimizer = build(optimizer_cfg, 1000)
    batch = random_batch(rows, samples)
    structs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch.items()}
    mesh = make_local_mesh()
    wide = 2048 if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    with jax.set_mesh(mesh):
        shapes = state_shapes(task, optimizer, structs, mesh=mesh, ema=task.ema_paths)
        state = create_state(task, optimizer, structs, shapes, key=jax.random.key(0))
        step = jax.jit(
            make_train_step(
                task,
                optimizer,
                learning_rate=learning_rate_schedule(optimizer_cfg, 1000),
                ema_decay=annealed_decay(0.999, 0.99999, 20_000),
            ),
            donate_argnums=0,
        )
        healthy, stop = jnp.bool_(True), jnp.zeros(1, bool)
        begun = time.perf_counter()
        program = step.lower(state, healthy, batch, stop, jax.random.key(1)).compile()
        compile_seconds = time.perf_counter() - begun
        times, rates, losses = [], [], []
        for _ in range(steps + 1):  # the first warms up
            rates.append(measure_matmul_rate(rows=wide, dtype=encoder.dtype, seconds=0.4, rounds=1))
            begun = time.perf_counter()
            state, healthy, outcome = program(state, healthy, batch, stop, jax.random.key(1))
            losses.append(float(outcome["loss"]))
            times.append(time.perf_counter() - begun)
    assert bool(healthy), losses
    memory = program.memory_analysis()
    return {
        "compile": compile_seconds,
        "step": min(times[1:]),
        "median": float(np.median(times[1:])),
        "rate": max(rates),
        "losses": losses,
        "gib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
    }


def random_batch(rows: int, samples: int) -> dict[str, np.ndarray]:
    """Noise of one length, labels in pairs so that the category loss has partners."""
    rng = np.random.default_rng(0)
    return {
        "audio": 0.1 * rng.standard_normal((rows, samples), np.float32),
        "audio_samples": np.full(rows, samples, np.int32),
        "label": (np.arange(rows) // 2).astype(np.int32),
    }


def step_flops(encoder: Emotion2VecConfig, data2vec, rows: int, samples: int) -> float:
    """Operations of the step's matrix products and convolutions, a multiply-add counted as two.

    A backward pass counts twice its forward pass, but once for the first convolution: nothing asks
    for the gradient of the audio. Nothing is counted for recomputation, dropout or the optimizer.
    """
    D, T, channels, stem = encoder.width, samples, 1, 0.0
    for i, layer in enumerate(encoder.conv_layers):
        T = (T - layer.kernel) // layer.stride + 1
        forward = 2 * rows * T * layer.kernel * channels * layer.channels
        stem += forward * (3 if i else 2)
        channels = layer.channels
    stem += 3 * 2 * rows * T * channels * D
    K, clones, E = data2vec.kept_frames(T), data2vec.clone_batch, encoder.extra_tokens

    def position(rows: int) -> float:
        taps = encoder.position_kernel * D / encoder.position_groups
        return encoder.position_depth * 2 * rows * T * taps * D

    def blocks(rows: int, S: int) -> float:
        block = 2 * S * (4 + 2 * encoder.mlp_ratio) * D * D + 4 * S * S * D
        return rows * (encoder.depth + encoder.prenet_depth) * block

    decoder, inputs = 0.0, D
    for _ in range(data2vec.decoder_depth):
        taps = data2vec.decoder_kernel * inputs / data2vec.decoder_groups
        decoder += 2 * rows * clones * T * taps * data2vec.decoder_width
        inputs = data2vec.decoder_width
    decoder += 2 * rows * clones * T * inputs * D
    student = position(rows * clones) + blocks(rows * clones, K + E) + decoder
    return stem + 3 * student + position(rows) + blocks(rows, T + E)


def report(kind: str, dtype: str, rows: int, seconds: float, flops: float, result) -> None:
    """Prints the figures of our side."""
    step = result["step"]
    print(f"device         {kind}, {dtype}")
    print(f"batch          {rows} utterances of {seconds:g} s, {flops / 1e9:.0f} GFLOP a step")
    print(f"losses         {', '.join(f'{loss:.3f}' for loss in result['losses'])}")
    print(f"compilation    {result['compile']:.1f} s")
    print(f"memory         {result['gib']:.2f} GiB of arguments and temporaries")
    print(f"step           {step:.3f} s (median {result['median']:.3f}), "
          f"{rows * seconds / step:.2f} audio seconds per second")  # fmt: skip
    print(f"rate           {flops / step / 1e9:.1f} GFLOP/s, XLA's matrix product alone "
          f"{result['rate'] / 1e9:.1f}")  # fmt: skip


def peer_seconds(encoder, cfg, rows: int, samples: int, steps: int, gpu: bool) -> float | None:
    """Seconds of the same step in torch, in a process of its own; None when it could not run."""
    job = {
        "encoder": dataclasses.asdict(encoder),
        "data2vec": dataclasses.asdict(cfg.data2vec),
        "rows": rows,
        "samples": samples,
        "steps": steps,
        "gpu": gpu,
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("peer_torch.py"))],
        input=json.dumps(job),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"torch          failed: {done.stderr.strip().splitlines()[-1]}")
        return None
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    use_huge_pages(sys.argv[0])  # as training does; torch's process inherits it
    sys.exit(main())
