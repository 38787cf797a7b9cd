"""Kills a tiny pretraining many times, also in saves, and checks that it ends bit for bit the same.

python benchmarks/soak_resume.py --kills 20
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration import exact_runs  # noqa: E402


def start(workdir: Path, *arguments: object) -> subprocess.Popen:
    """Starts the program of the tests, with the compiler's usual passes."""
    return exact_runs.start(workdir, "tests.integration.tiny_pretraining", *arguments)


def failed(workdir: Path, what: str) -> int:
    """Prints the end of the run's log and what failed; returns the exit code."""
    print(workdir.with_suffix(".log").read_text()[-3000:], file=sys.stderr)
    print(what, file=sys.stderr)
    return 1


def rows(workdir: Path) -> int:
    """Returns how many steps are logged."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def newest(workdir: Path) -> int:
    """Returns the step of the newest complete checkpoint, 0 when there is none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def live_and_die(workdir: Path, rng: np.random.Generator, options: list, in_save: bool) -> str:
    """Starts the run once and lets it be killed; returns how it went."""
    workers, before = int(rng.choice([0, 1, 2, 4])), newest(workdir)
    options = [*options, "--workers", workers, *(["--die-in-save"] if in_save else [])]
    process = start(workdir, *options)
    if not in_save:
        # The log is cut back to the checkpoint when the run resumes, so its rows tell the step.
        until = before + int(rng.integers(1, 40))
        while process.poll() is None and not before <= rows(workdir) < until:
            time.sleep(0.01)
        while process.poll() is None and rows(workdir) < until:
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.05)))
        process.kill()
    code = process.wait()
    how = "in a save" if in_save else f"after step {rows(workdir)}"
    return f"{workers} workers, from step {before}, ended with {code} {how}"


def main() -> int:
    """Prints each kill and, last, whether all parameters are equal; 0 when they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        options = ["--steps", args.steps, "--save-every", 10]
        begun = time.monotonic()
        if start(root / "whole", *options, "--output", root / "whole.npz").wait():
            return failed(root / "whole", "the uninterrupted run failed")
        print(f"uninterrupted: {time.monotonic() - begun:.0f} s", flush=True)
        for kill in range(1, args.kills + 1):
            told = live_and_die(root / "broken", rng, options, in_save=kill % 4 == 0)
            print(f"kill {kill}: {told}", flush=True)
            if f"ended with {-signal.SIGKILL} " not in told:
                return failed(root / "broken", "the run was not killed: give more --steps")
        if start(root / "broken", *options, "--output", root / "broken.npz").wait():
            return failed(root / "broken", "the last start failed")
        with np.load(root / "whole.npz") as ours, np.load(root / "broken.npz") as theirs:
            equal = [ours[name].tobytes() == theirs[name].tobytes() for name in ours]
        print(f"{sum(equal)} of {len(equal)} arrays are bit-identical after {args.kills} kills")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
