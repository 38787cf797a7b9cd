"""Chain of thought on eight virtual devices: one device's loss and gradients, for both stages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What tests/integration/eight_devices_answers.py measured, once for all tests here."""
    environment = {
        **os.environ,
        "C2SER_COMPILATION_CACHE": "off",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "NPROC": "64",  # threads for collectives that wait for one another, whatever the machine
        "PYTHONWARNINGS": "error",
    }
    directory = tmp_path_factory.mktemp("eight")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.eight_devices_answers", directory, "all axes"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("batch", ["explicit", "mixed"])
def test_eight_devices_give_one_devices_loss_and_gradients(seen, batch):
    assert seen["devices"] == 8
    assert (seen["explicit rows"][batch] == 1) == (batch == "explicit")
    assert seen["terms"][batch]["answer"] > 1
    assert seen["all axes"][batch]["loss"] < 1e-5
    assert 0 < seen["all axes"][batch]["gradient"] < 1e-5, seen["all axes"][batch]["worst"]


@pytest.mark.parametrize(
    ("mesh", "part"),
    [("all axes", [2, 16, 16]), ("data × fsdp", [2, 32, 16]), ("fsdp × tensor", [2, 8, 16]),
     ("alone", [2, 32, 32])],
)  # fmt: skip
def test_a_checkpoint_of_one_mesh_loads_on_another_with_teacher_and_dtypes(seen, mesh, part):
    assert seen[mesh]["equal"] and seen[mesh]["teacher"]
    assert seen[mesh]["kernel"] == ["bfloat16", part]
