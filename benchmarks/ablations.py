"""What each part of C2SER is worth at toy size: configs/quickstart_c2ser.py without it.

`python benchmarks/ablations.py` trains every variant with every seed, asks it about the held-out
speakers, and prints the accuracy of scored labels beside the paper's figures on Emo-Emilia (other
data, other sizes: only the order can be compared). It goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from c2ser_jax.compilation import enable_compilation_cache  # noqa: E402
from c2ser_jax.config import RunConfig, load_run  # noqa: E402
from c2ser_jax.errors import UserError, run_command  # noqa: E402
from c2ser_jax.models.c2ser import Inputs  # noqa: E402
from c2ser_jax.run import execute  # noqa: E402

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart_c2ser.py"
PAPER = {
    "full": 69.00,
    "without CoT": 43.14,
    "without Emotion2Vec-S": 57.93,
    "without Whisper": 32.07,
}
"""UA in per cent on Emo-Emilia (arXiv 2502.18186)."""


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing below `--workdir`, prints the table, writes ablations.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/c2ser-ablations"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=list(PAPER), default=list(PAPER))
    parser.add_argument("overrides", nargs="*", help="settings of the run, after --: --a.b value")
    arguments = parser.parse_args(argv)
    enable_compilation_cache()
    run = load_run(CONFIG, arguments.overrides)
    scores: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for name in arguments.variants:
            folder = arguments.workdir / f"{name.replace(' ', '-')}-{seed}"
            results = execute(variant(run, name, seed), folder, progress=False)
            if results is None:
                return 0
            found = float(results["implicit"].folds[0].metrics["ua"])
            scores.setdefault(name, []).append(found)
            print(f"{name}, seed {seed}: {found:.1%}", flush=True)
    print(f"\n{table(scores)}", flush=True)
    (arguments.workdir / "ablations.json").write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    return 0


def variant(run: RunConfig, name: str, seed: int) -> RunConfig:
    """The run with one seed and without what `name` says.

    Without chain of thought the short answers are trained for the steps of both stages.
    """
    if run.c2ser is None or run.explicit is None or run.implicit is None:
        raise UserError("the config lacks c2ser, explicit or implicit; there is nothing to ablate")
    run = dataclasses.replace(run, name=f"{run.name}, {name}", seed=seed)
    if name == "without CoT":
        loop = run.implicit.loop
        steps = loop.steps + run.explicit.loop.steps
        answers = dataclasses.replace(
            run.implicit.answers, explicit_share_start=0.0, explicit_share_end=0.0
        )
        implicit = dataclasses.replace(
            run.implicit,
            answers=answers,
            optimizer=run.explicit.optimizer,
            loop=dataclasses.replace(loop, steps=steps, save_every=steps),
        )
        return dataclasses.replace(run, explicit=None, implicit=implicit)
    inputs: dict[str, Inputs] = {
        "without Emotion2Vec-S": "semantic", "without Whisper": "acoustic"
    }  # fmt: skip
    if name not in inputs:
        return run
    heard = inputs[name]
    stages = {
        stage: dataclasses.replace(
            getattr(run, stage),
            task=dataclasses.replace(getattr(run, stage).task, inputs=heard),
        )
        for stage in ("explicit", "implicit")
    }
    return dataclasses.replace(run, c2ser=dataclasses.replace(run.c2ser, inputs=heard), **stages)


def table(scores: dict[str, list[float]]) -> str:
    """One line per variant, in per cent: the mean, every seed's, and the paper's figure."""
    lines = [f"{'variant':<24}{'mean':>6}  {'paper':>6}  seeds"]
    for name, values in scores.items():
        seeds = " ".join(f"{100 * value:.1f}" for value in values)
        lines.append(f"{name:<24}{100 * np.mean(values):>6.1f}  {PAPER[name]:>6.2f}  {seeds}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
