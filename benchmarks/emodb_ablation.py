"""What each pretraining loss is worth on EmoDB: the recipe of configs/emodb/loso.py without it.

`python benchmarks/emodb_ablation.py --data ../shared/data/emodb` runs four variants on three fixed
test speakers with two seeds and prints the table; it goes on where it was stopped.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from c2ser_jax.compilation import enable_compilation_cache
from c2ser_jax.config import RunConfig, load_run
from c2ser_jax.errors import UserError, run_command
from c2ser_jax.run import execute

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "emodb" / "loso.py"
VARIANTS = {
    "all three losses": {},
    "without category": {"category_weight": 0.0},
    "without utterance": {"utterance_weight": 0.0},
    "without frame": {"frame_weight": 0.0},
}


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing below `--workdir`, prints the table, writes ablation.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of EmoDB (metadata.jsonl, audio/)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/emodb-ablation"))
    parser.add_argument("--speakers", nargs="+", default=["03", "09", "14"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("overrides", nargs="*", help="settings of the run, after --: --a.b value")
    arguments = parser.parse_args(argv)
    enable_compilation_cache()
    run = load_run(CONFIG, ["--data.root", arguments.data, *arguments.overrides])
    scores: dict[str, dict[str, list[float]]] = {}
    for name in arguments.variants:
        for seed in arguments.seeds:
            folder = arguments.workdir / f"{name.replace(' ', '-')}-{seed}"
            found = score(variant(run, name, arguments.speakers, seed), folder)
            if found is None:
                return 0
            for stage, values in found.items():
                scores.setdefault(stage, {}).setdefault(name, []).extend(values)
    for stage, rows in scores.items():
        print(f"\n{stage}: UA of {', '.join(arguments.speakers)} × seeds {arguments.seeds}\n")
        print(table(rows, len(arguments.speakers)), flush=True)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    (arguments.workdir / "ablation.json").write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    return 0


def variant(run: RunConfig, name: str, speakers: Sequence[str], seed: int) -> RunConfig:
    """The recipe on some test speakers with one seed, `name`'s loss weights changed."""
    if run.pretrain is None:
        raise UserError("the config has no pretrain stage; there is no loss to leave out")
    task = dataclasses.replace(run.pretrain.task, **VARIANTS[name])
    return dataclasses.replace(
        run,
        name=f"{run.name}, {name}",
        seed=seed,
        data=dataclasses.replace(run.data, folds=tuple(f"speaker-{s}" for s in speakers)),
        pretrain=dataclasses.replace(run.pretrain, task=task),
    )


def score(run: RunConfig, folder: Path) -> dict[str, list[float]] | None:
    """{scored stage: UA per fold}, shares of 1; None when a signal stopped the run."""
    results = execute(run, folder, progress=False)
    if results is None:
        return None
    return {
        stage: [float(fold.metrics["ua"]) for fold in result.folds]
        for stage, result in results.items()
    }


def table(rows: dict[str, list[float]], speakers: int) -> str:
    """One line per variant, in per cent: mean UA, each seed's mean, every single UA."""
    lines = [f"{'variant':<20}{'mean':>6}  {'seeds':<14}single folds"]
    for name, values in rows.items():
        by_seed = 100 * np.reshape(values, (-1, speakers))
        seeds = " ".join(f"{mean:.1f}" for mean in by_seed.mean(1))
        single = " ".join(f"{value:.0f}" for value in by_seed.ravel())
        lines.append(f"{name:<20}{by_seed.mean():>6.1f}  {seeds:<14}{single}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
