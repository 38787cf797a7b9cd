"""Training commands as processes that tests kill, stop and compare."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from c2ser_jax.training.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
TIMING = ("seconds", "compile_seconds", "steps_per_second", "audio_seconds_per_second")


def start(workdir: Path, module: str, *arguments: object, processes: int = 1) -> subprocess.Popen:
    """Starts `python -m module --workdir DIR …`, in which a warning is an error.

    It shares this process's compilation cache, or has one beside the workdir where none is named.
    """
    cache = {"C2SER_COMPILATION_CACHE": str(workdir.parent / "cache")}
    environment = {**cache, **os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", module, *arguments_of(workdir, *arguments)]
    if processes > 1:
        launcher = [sys.executable, "launch/local_multiprocess.py", "--processes", processes, "--"]
        command = [*launcher, *command]
    with open(workdir.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            stderr=log,
            start_new_session=True,
        )


def arguments_of(workdir: Path, *arguments: object) -> list[str]:
    """The command line of a run in `workdir`."""
    return ["--workdir", str(workdir), *(str(argument) for argument in arguments)]


def measured_on_eight_devices(module: str, *arguments: object) -> dict:
    """What `python -m module …`, which makes eight virtual devices, prints as its last line."""
    environment = {
        "C2SER_COMPILATION_CACHE": "off",
        "JAX_PLATFORMS": "cpu",
        "PYTHONWARNINGS": "error",
        "NPROC": "64",  # threads for collectives that wait for one another, whatever the machine
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *(str(argument) for argument in arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def finish(process: subprocess.Popen, workdir: Path, code: int) -> None:
    """Waits for the exit code."""
    try:
        assert process.wait(timeout=600) == code, workdir.with_suffix(".log").read_text()[-3000:]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # a launcher's processes, too
        raise
    finally:
        process.kill()


def wait_for_rows(process: subprocess.Popen, workdir: Path, count: int, stage: str = "") -> None:
    """Waits until so many rows of the log are written."""
    deadline = time.monotonic() + 600
    while len(read_metrics(workdir / stage / "metrics.jsonl")) < count:
        late = time.monotonic() > deadline or process.poll() is not None
        assert not late, workdir.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.002)


def training_rows(workdir: Path) -> list[dict]:
    """The logged numbers without those that tell the time."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k not in TIMING} for row in rows if row["kind"] == "train"
    ]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    with np.load(path) as stored:
        return dict(stored)


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
