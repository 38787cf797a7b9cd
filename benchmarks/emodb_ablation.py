"""What each pretraining loss is worth on EmoDB: the recipe of configs/emodb/loso.py without it.

`python benchmarks/emodb_ablation.py --data EMODB` trains every variant on the seven
other speakers, scores it on three fixed ones held out together, with two seeds, and prints the
table; it goes on where it was stopped. `--score probe` asks what pretraining alone has learned: no
fine-tuning, EmoBox's probe on the frozen features, its width and epoch chosen by an eighth speaker,
whom pretraining does not hear.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.compilation import enable_compilation_cache
from c2ser_jax.config import RunConfig, load_run
from c2ser_jax.errors import UserError, run_command
from c2ser_jax.run import execute
from c2ser_jax.tasks.probe_recipe import ProbeConfig

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "emodb" / "loso.py"
VARIANTS: dict[str, dict[str, Any]] = {
    "all three losses": {},
    "without category": {"category_weight": 0.0},
    "without utterance": {"utterance_weight": 0.0},
    "without frame": {"frame_weight": 0.0},
    "without pretraining": {},
}
"""Weights of the losses; the category loss is left out of fine-tuning, too."""
FINE_TUNED_ONLY = "without pretraining"


def main(argv: list[str] | None = None) -> int:
    """Runs what is missing below `--workdir`, prints the table, writes ablation.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of EmoDB (metadata.jsonl, audio/)")
    parser.add_argument("--workdir", type=Path, default=Path("runs/emodb-ablation"))
    parser.add_argument("--speakers", nargs="+", default=["03", "09", "14"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--score", choices=("classify", "probe"), default="classify")
    parser.add_argument("overrides", nargs="*", help="settings of the run, after --: --a.b value")
    arguments = parser.parse_args(argv)
    probed = arguments.score == "probe"
    variants = arguments.variants or [n for n in VARIANTS if not (probed and n == FINE_TUNED_ONLY)]
    enable_compilation_cache()
    run = load_run(CONFIG, ["--data.root", arguments.data, *arguments.overrides])
    scores: dict[str, list[float]] = {}
    for name in variants:
        for seed in arguments.seeds:
            folder = arguments.workdir / arguments.score / f"{name.replace(' ', '-')}-{seed}"
            changed = variant(run, name, arguments.speakers, seed)
            found = score(for_probe(changed) if probed else changed, folder)
            if found is None:
                return 0
            scores.setdefault(name, []).append(found)
    names = ", ".join(arguments.speakers)
    seeds = ", ".join(map(str, arguments.seeds))
    print(f"UA of {arguments.score} on speakers {names}, seeds {seeds}\n")
    print(table(scores), flush=True)
    path = arguments.workdir / arguments.score / "ablation.json"
    path.write_text(json.dumps(scores, indent=1) + "\n", "utf-8")
    return 0


def variant(run: RunConfig, name: str, speakers: Sequence[str], seed: int) -> RunConfig:
    """The recipe with `speakers` held out together and one seed, changed as `name` says."""
    if run.pretrain is None or run.classify is None:
        raise UserError("the config lacks a pretrain or classify stage; there is nothing to ablate")
    task = dataclasses.replace(run.pretrain.task, **VARIANTS[name])
    head = run.classify.task
    if not task.category_weight:
        head = dataclasses.replace(head, category_weight=0.0)
    data = dataclasses.replace(run.data, protocol="speakers", test_speakers=tuple(speakers))
    return dataclasses.replace(
        run,
        name=f"{run.name}, {name}",
        seed=seed,
        stages=("classify",) if name == FINE_TUNED_ONLY else run.stages,
        data=data,
        pretrain=dataclasses.replace(run.pretrain, task=task),
        classify=dataclasses.replace(run.classify, task=head),
    )


def for_probe(run: RunConfig) -> RunConfig:
    """The variant with a probe of what pretraining left in place of fine-tuning."""
    if "pretrain" not in run.configured_stages():
        raise UserError(f"'{FINE_TUNED_ONLY}' leaves nothing to probe; use --score classify for it")
    data = dataclasses.replace(run.data, development=True)
    return dataclasses.replace(run, stages=("pretrain", "probe"), data=data, probe=ProbeConfig())


def score(run: RunConfig, folder: Path) -> float | None:
    """UA of the run's last stage, a share of 1; None when a signal stopped the run."""
    results = execute(run, folder, progress=False)
    if results is None:
        return None
    return float(results[run.configured_stages()[-1]].folds[0].metrics["ua"])


def table(scores: dict[str, list[float]]) -> str:
    """One line per variant, in per cent: the mean UA and every seed's."""
    lines = [f"{'variant':<20}{'mean':>6}  seeds"]
    for name, values in scores.items():
        seeds = " ".join(f"{100 * value:.1f}" for value in values)
        lines.append(f"{name:<20}{100 * np.mean(values):>6.1f}  {seeds}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
