"""Eight virtual devices (4 × 2) give one device's loss and gradients; checkpoints change meshes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What tests/integration/eight_devices.py measured, once for all tests here."""
    directory = tmp_path_factory.mktemp("eight")
    environment = {
        **os.environ,
        "C2SER_COMPILATION_CACHE": "off",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "NPROC": "64",  # threads for collectives that wait for one another, whatever the machine
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.eight_devices", str(directory)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", ["fsdp", "tensor"])
def test_eight_devices_give_one_devices_loss_and_gradients(seen, mesh):
    assert seen["devices"] == 8 and seen["loss"] > 0.1
    assert seen[mesh]["loss"] < 1e-5
    assert seen[mesh]["gradient"] < 1e-5, seen[mesh]["worst"]
    assert 0 < seen[mesh]["gradient"], "the same program was compared with itself"


@pytest.mark.parametrize(("mesh", "part"), [("fsdp", [2, 8, 48]), ("tensor", [2, 16, 24])])
def test_parameters_and_slots_are_split_and_start_the_same(seen, mesh, part):
    assert seen[mesh]["kernel"] == [[2, 16, 48], part]
    assert seen[mesh]["slot"] == part
    assert seen[mesh]["initial"] < 1e-6


@pytest.mark.parametrize(("mesh", "part"), [("moved", [2, 16, 12]), ("alone", [2, 16, 48])])
def test_a_checkpoint_of_one_mesh_loads_on_another(seen, mesh, part):
    assert seen[mesh] == {"equal": True, "kernel": part}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("rows", "12 rows cannot be shared out over 8"),
        ("cut", "multiple of 32"),
        ("mesh", "this run has 8"),
    ],
)
def test_what_does_not_fit_the_mesh_gets_a_sentence(seen, case, words):
    assert words in seen[case]
