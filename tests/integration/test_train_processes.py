"""The whole train command in two processes: one scores, the other waits for it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.tiny_corpus import CONFIG, read_rows

ROOT = Path(__file__).resolve().parents[2]

# Scoring takes longer than JAX lets a process that has ended wait for the others.
SLOW_SCORES = """
import functools, time
import jax
jax.distributed.initialize = functools.partial(
    jax.distributed.initialize, shutdown_timeout_seconds=2
)
from c2ser_jax import stages, train
from c2ser_jax.errors import run_command
score_model = stages.score_model
def late(*arguments):
    time.sleep(5)
    return score_model(*arguments)
stages.score_model = late
run_command(train.main)
"""


def test_two_processes_train_one_scores_and_both_end_well(tmp_path):
    launcher = [sys.executable, "launch/local_multiprocess.py", "--processes", "2", "--"]
    settings = ["--config", CONFIG, "--workdir", str(tmp_path), "--no-progress",
                "--stages", "classify"]  # fmt: skip
    done = subprocess.run(
        [*launcher, sys.executable, "-c", SLOW_SCORES, *settings],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("everything is in") == 1
    assert [row["step"] for row in read_rows(tmp_path / "classify/metrics.jsonl")] == [1, 2]
    assert read_rows(tmp_path / "classify/predictions.jsonl")
