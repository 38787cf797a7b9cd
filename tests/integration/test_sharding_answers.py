"""Chain of thought on eight virtual devices: one device's loss and gradients, for both stages."""

import pytest

from tests.integration.exact_runs import measured_on_eight_devices


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What tests/integration/eight_devices_answers.py measured, once for all tests here."""
    return measured_on_eight_devices(
        "tests.integration.eight_devices_answers", tmp_path_factory.mktemp("eight"), "all axes"
    )


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
