"""A step's memory shrinks with the devices that split its state; the benchmark says what it saw."""

import pytest

from benchmarks.c2ser_memory import COPIES, TOGETHER, run, verdict
from tests.integration.exact_runs import measured_on_eight_devices

COUNTERS = 64  # bytes: step and optimizer counts, which every device holds


@pytest.fixture(scope="module")
def seen():
    """What tests/integration/split_memory.py measured on eight virtual devices."""
    return measured_on_eight_devices("tests.integration.split_memory")


def test_a_devices_share_of_the_state_shrinks_with_fsdp(seen):
    whole, found = seen["alone"]["arguments"], seen["fsdp 8"]
    shared = whole - found["unsplit"]
    assert shared > 20 * found["unsplit"]
    assert abs(found["arguments"] - found["unsplit"] - shared / 8) <= COUNTERS


def test_rules_that_split_nothing_would_be_noticed(seen):
    assert seen["no rule"]["arguments"] == seen["alone"]["arguments"]
    assert seen["no rule"]["arguments"] > 3 * seen["fsdp 8"]["arguments"]
    assert seen["no rule"]["unsplit"] > 3 * seen["fsdp 8"]["unsplit"]


@pytest.mark.parametrize(("needed", "words"), [(80.0, "fits 80 GB"), (80.1, "does not fit 80 GB")])
def test_the_sentence_follows_from_the_numbers(needed, words):
    found = verdict("link_and_lora", {TOGETHER: needed, COPIES: 20.0})
    assert words in found and f"{needed:.1f} GB ({needed + 20:.1f} GB" in found


def test_a_real_step_is_refused_without_a_gpu():
    with pytest.raises(SystemExit, match="needs a GPU, but JAX runs on a cpu"):
        run("link_and_lora")
