"""XLA's own matrix-product rate on this machine: the ceiling of which others report a share.

Shapes: M rows (frames of a batch), D encoder width.

`python benchmarks/matmul_rate.py` prints one line per product and last `rate 131.4` in GFLOP/s.
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp

ENCODER_PRODUCTS = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
"""(inputs, outputs) of a base-size block: qkv, attention output, fc1, fc2."""
ACCELERATOR_ROWS = 131_072
"""Rows that make a product long against its start on an accelerator."""


def best_seconds(function, *arguments, seconds: float = 0.3, least: int = 3) -> float:
    """Smallest wall time of `function(*arguments)`, compiled first, over repeats in `seconds`.

    The smallest and not the mean: another process on the machine can only add time.
    """
    jax.block_until_ready(function(*arguments))
    best, calls, end = float("inf"), 0, time.perf_counter() + seconds
    while calls < least or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - start)
        calls += 1
    return best


def measure_matmul_rate(
    *,
    rows: int = 2048,
    products=ENCODER_PRODUCTS,
    dtype: str = "float32",
    seconds: float = 1.2,
    rounds: int = 3,
    report=None,
) -> float:
    """FLOP/s of XLA's matrix product on the default device, over the shapes of a base-size encoder.

    Each product is repeated and its fastest time kept, in `rounds` interleaved rounds of `seconds`
    altogether; the rate is all FLOPs over all of those times. `report` (a function of one string)
    is called with a line per product.
    """
    keys = jax.random.split(jax.random.key(0), 2)
    multiply = jax.jit(jnp.matmul)
    share = seconds / (rounds * len(products))
    best = [float("inf")] * len(products)
    for _ in range(rounds):
        for i, (inputs, outputs) in enumerate(products):
            a = jax.random.normal(keys[0], (rows, inputs), dtype)
            b = jax.random.normal(keys[1], (inputs, outputs), dtype)
            best[i] = min(best[i], best_seconds(multiply, a, b, seconds=share))
    flops = [2 * rows * inputs * outputs for inputs, outputs in products]
    if report is not None:
        for (inputs, outputs), f, t in zip(products, flops, best, strict=True):
            report(f"[{rows}, {inputs}] x [{inputs}, {outputs}]  {f / t / 1e9:8.1f} GFLOP/s")
    return sum(flops) / sum(best)


def main(argv: list[str] | None = None) -> int:
    """Prints the rate of each product and of all of them."""
    parser = argparse.ArgumentParser(description="XLA's own matrix-product rate.")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument(
        "--repeats", type=int, default=3, help="measurements; the median is printed"
    )
    arguments = parser.parse_args(argv)
    rates = [
        measure_matmul_rate(rows=arguments.rows, dtype=arguments.dtype, report=print)
        for _ in range(arguments.repeats)
    ]
    print(f"rate {statistics.median(rates) / 1e9:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
