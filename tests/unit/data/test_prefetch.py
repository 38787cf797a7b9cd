"""Prefetched batches come in order, errors reach the caller, and worker processes end quietly."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from c2ser_jax.data.audio import BadAudio
from c2ser_jax.data.prefetch import Prefetched

SCRIPT = """
import itertools
from c2ser_jax.data.prefetch import Prefetched
from steps_for_workers import make

if __name__ == "__main__":
    batches = Prefetched(make, range(7, 1 << 40), workers=1, threads=1)
    print(*(int(batch["audio"][0, 0]) for batch in itertools.islice(batches, 5)))
    # Neither closed nor used up: the interpreter ends with workers and batches under way.
"""

GROUP_SIGNAL = """
import itertools, os, signal, threading
from c2ser_jax.data.prefetch import Prefetched
from steps_for_workers import make

def end_again_and_again():
    while not started.wait(0.05):
        os.killpg(os.getpgrp(), signal.SIGTERM)

if __name__ == "__main__":
    noted, started = [], threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    batches = Prefetched(make, range(50), workers=1, threads=1)
    while_they_start = threading.Thread(target=end_again_and_again)
    while_they_start.start()
    next(batches)
    started.set()
    while_they_start.join()
    before = len(noted)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    print(*(int(batch["audio"][0, 0]) for batch in itertools.islice(batches, 10)))
    print(before, len(noted))
    batches.close()
"""
KILLED = """
import os, signal
from c2ser_jax.data.prefetch import Prefetched
from steps_for_workers import make

if __name__ == "__main__":
    next(Prefetched(make, range(1 << 40), workers=1, threads=1))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def make(step):
    if step == 12:
        raise BadAudio("a.wav", "empty", "the file has 0 bytes")
    return {"audio": np.full((2, 50_000), step, np.float32), "id": [str(step)], "bad": []}


def test_batches_come_in_the_order_of_the_steps():
    batches = Prefetched(make, range(5, 10), workers=0, threads=3)
    assert [batch["id"] for batch in batches] == [["5"], ["6"], ["7"], ["8"], ["9"]]
    batches.close()
    assert list(batches) == []


def test_an_error_reaches_the_caller_in_its_place():
    batches = Prefetched(make, range(10, 20), workers=0, threads=2)
    assert [batch["id"] for batch in itertools.islice(batches, 2)] == [["10"], ["11"]]
    with pytest.raises(BadAudio, match="0 bytes"):
        next(batches)
    batches.close()


def run_script(folder, script):
    """Runs it in a process group of its own; returns when all that hold its output have ended."""
    root = Path(__file__).parents[3]
    (folder / "steps_for_workers.py").write_text(
        "import numpy as np\n\ndef make(step):\n"
        "    return {'audio': np.full((2, 50_000), step, np.float32)}\n"
    )
    (folder / "run.py").write_text(script)
    return subprocess.run(
        [sys.executable, str(folder / "run.py")],
        capture_output=True,
        text=True,
        timeout=240,
        env={"PYTHONPATH": f"{folder}:{root}", "PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )


def test_a_run_that_ends_in_the_middle_leaves_nothing_behind(tmp_path):
    """Forgotten worker processes or shared memory would be told on stderr."""
    result = run_script(tmp_path, SCRIPT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["7", "8", "9", "10", "11"]


def test_workers_leave_a_signal_to_the_process_that_started_them(tmp_path):
    result = run_script(tmp_path, GROUP_SIGNAL)
    assert (result.returncode, result.stderr) == (0, "")
    *steps, before, after = map(int, result.stdout.split())
    assert steps == list(range(1, 11)) and 0 < before < after


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """Their output is ours: while one of them lives, this does not return."""
    assert run_script(tmp_path, KILLED).returncode == -signal.SIGKILL
