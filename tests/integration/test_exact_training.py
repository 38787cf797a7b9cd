"""Training is exact: killed, preempted, resumed, in one process or two, it takes the same way."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.integration import exact_runs, tiny_pretraining
from tests.integration.exact_runs import (
    ROOT,
    arguments_of,
    arrays,
    finish,
    saved_steps,
    training_rows,
    wait_for_rows,
)

STEPS = 24


def start(workdir, *arguments, processes=1):
    """Starts the tiny pretraining."""
    module = "tests.integration.tiny_pretraining"
    return exact_runs.start(workdir, module, *arguments, processes=processes)


def run_here(workdir, *arguments):
    """The tiny pretraining in this process, which nothing kills."""
    assert tiny_pretraining.main(arguments_of(workdir, *arguments)) == 0


def test_a_run_killed_twice_ends_bit_for_bit_the_same(tmp_path, capfd):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_here(whole, "--output", tmp_path / "whole.npz")
    rng = np.random.default_rng(20)
    process = start(broken, "--workers", 2)
    wait_for_rows(process, broken, int(rng.integers(9, 18)))
    time.sleep(float(rng.uniform(0, 0.03)))
    process.kill()
    finish(process, broken, -signal.SIGKILL)
    assert saved_steps(broken) and max(saved_steps(broken)) < STEPS
    process = start(broken, "--die-in-save")
    finish(process, broken, -signal.SIGKILL)
    assert [path for path in (broken / "checkpoints").iterdir() if "tmp" in path.name]
    capfd.readouterr()
    run_here(broken, "--workers", 2, "--output", tmp_path / "broken.npz")
    resumed = broken.with_suffix(".log").read_text(), capfd.readouterr().err

    ours, theirs = arrays(tmp_path / "whole.npz"), arrays(tmp_path / "broken.npz")
    assert sorted(ours) == sorted(theirs) and len(ours) > 40
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name
    assert training_rows(whole) == training_rows(broken)
    assert [row["step"] for row in training_rows(broken)] == list(range(1, STEPS + 1))
    assert [log.count("resumes from step") for log in resumed] == [1, 1]
    assert all(path.name.isdigit() for path in (broken / "checkpoints").iterdir())


def test_two_processes_give_the_same_gradients_and_stop_together(tmp_path):
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    fake = ("--task", "fake", "--steps", 200, "--save-every", 50)
    first = {run: ("--first-gradients", run.with_suffix(".first.npz")) for run in (alone, pair)}
    run_here(alone, *fake, *first[alone], "--output", tmp_path / "alone.npz")
    process = start(pair, *fake, *first[pair], processes=2)
    wait_for_rows(process, pair, 10)
    process.send_signal(signal.SIGTERM)
    finish(process, pair, 0)
    stopped_at = max(saved_steps(pair))
    rows, wanted = training_rows(pair), training_rows(alone)
    assert rows[-1]["step"] == stopped_at < 200
    assert pair.with_suffix(".log").read_text().count("stopped by a signal") == 1
    for row, other in zip(rows[:5], wanted[:5], strict=True):
        for name in ("loss", "class", "teacher", "gradient_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)
    ours, theirs = (arrays(run.with_suffix(".first.npz")) for run in (alone, pair))
    assert sorted(ours) == sorted(theirs) and len(ours) == 4
    for name, one in ours.items():
        assert np.linalg.norm(theirs[name] - one) < 1e-5 * np.linalg.norm(one), name

    # What two processes saved, one process on one device goes on with.
    run_here(pair, *fake, "--output", tmp_path / "pair.npz")
    assert training_rows(pair)[-1]["loss"] == pytest.approx(wanted[-1]["loss"], rel=1e-3)
    ours, theirs = arrays(tmp_path / "alone.npz"), arrays(tmp_path / "pair.npz")
    for name, one in ours.items():
        np.testing.assert_allclose(theirs[name], one, atol=1e-3, rtol=0, err_msg=name)


def test_the_launcher_fails_when_one_process_fails(tmp_path):
    program = (
        "import os, sys, time\n"
        "if os.environ['C2SER_PROCESS_ID'] == '1': sys.exit(3)\n"
        "time.sleep(60)\n"
    )
    launcher = [sys.executable, str(ROOT / "launch" / "local_multiprocess.py"), "--processes", "3"]
    begun = time.monotonic()
    done = subprocess.run(
        [*launcher, "--", sys.executable, "-c", program], capture_output=True, check=False
    )
    assert done.returncode == 3 and b"process 1 ended with 3" in done.stderr
    assert time.monotonic() - begun < 20
