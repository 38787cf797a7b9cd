"""Eight virtual devices (4 × 2) give one device's loss and gradients; checkpoints change meshes."""

import pytest

from tests.integration.exact_runs import measured_on_eight_devices


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What tests/integration/eight_devices.py measured, once for all tests here."""
    return measured_on_eight_devices(
        "tests.integration.eight_devices", tmp_path_factory.mktemp("eight")
    )


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
