"""The whole train command in two processes: one probes and scores, the other waits for it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.tiny_corpus import CONFIG, read_rows
from tests.tiny_models import write_tiny

ROOT = Path(__file__).resolve().parents[2]

# Scoring takes longer than JAX lets a process that has ended wait for the others.
SLOW_SCORES = """
import functools, sys, time
import jax
jax.distributed.initialize = functools.partial(
    jax.distributed.initialize, shutdown_timeout_seconds=2
)
from c2ser_jax import stages, train
score_probe = stages.score_probe
def late(*arguments):
    time.sleep(5)
    return score_probe(*arguments)
stages.score_probe = late
sys.exit(train.main(sys.argv[1:]))
"""


def test_in_two_processes_one_scores_and_both_end_well(tmp_path):
    launcher = [sys.executable, "launch/local_multiprocess.py", "--processes", "2", "--"]
    initial = write_tiny(tmp_path / "initial")
    settings = ["--config", CONFIG, "--workdir", str(tmp_path / "run"), "--no-progress",
                "--stages", "probe", "--initial", str(initial)]  # fmt: skip
    done = subprocess.run(
        [*launcher, sys.executable, "-c", SLOW_SCORES, *settings],
        cwd=ROOT,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("everything is in") == 1
    assert read_rows(tmp_path / "run/probe/predictions.jsonl")
