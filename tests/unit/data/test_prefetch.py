"""Prefetched batches come in order, errors reach the caller, and worker processes end quietly."""

import itertools
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


def test_a_run_that_ends_in_the_middle_leaves_nothing_behind(tmp_path):
    """Forgotten worker processes or shared memory would be told on stderr."""
    root = Path(__file__).parents[3]
    (tmp_path / "steps_for_workers.py").write_text(
        "import numpy as np\n\ndef make(step):\n"
        "    return {'audio': np.full((2, 50_000), step, np.float32)}\n"
    )
    (tmp_path / "run.py").write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")],
        capture_output=True,
        text=True,
        timeout=240,
        env={"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["7", "8", "9", "10", "11"]
