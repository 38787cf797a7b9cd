"""Both stages of chain of thought are exact: killed and resumed, or run by two processes."""

import signal

import numpy as np
import pytest

from c2ser_jax.train import main
from tests.integration.exact_runs import (
    ROOT,
    arguments_of,
    finish,
    saved_steps,
    start,
    training_rows,
    wait_for_rows,
)

STEPS = 12
SETTINGS = (  # as many steps of both stages, so that they share a program
    "--config", ROOT / "tests" / "integration" / "tiny_answering.py", "--no-progress",
    "--explicit.loop.steps", STEPS,
    "--implicit.loop.steps", STEPS, "--implicit.loop.save_every", 3,
)  # fmt: skip
STAGES = ("explicit", "implicit")


def train(workdir, *settings, processes=1):
    """Starts both stages of the tiny config."""
    return start(workdir, "c2ser_jax.train", *SETTINGS, *settings, processes=processes)


def parameters(workdir, stage) -> bytes:
    return (workdir / stage / "model" / "params.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both stages, in this process, that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("exact") / "whole"
    assert main(arguments_of(workdir, *SETTINGS)) == 0
    return workdir


def test_a_run_killed_in_its_second_stage_ends_bit_for_bit_the_same(whole, capfd):
    broken = whole.with_name("broken")
    process = train(broken)
    after = int(np.random.default_rng(20).integers(7, 11))  # the second save waits for the first
    wait_for_rows(process, broken, after, "implicit")
    process.kill()
    finish(process, broken, -signal.SIGKILL)
    assert 0 < max(saved_steps(broken / "implicit")) < STEPS
    more = ("--implicit.batches.workers", 2)
    assert main(arguments_of(broken, *SETTINGS, *more)) == 0  # in this process
    for stage in STAGES:
        assert parameters(broken, stage) == parameters(whole, stage), stage
        assert training_rows(broken / stage) == training_rows(whole / stage), stage
    assert [row["step"] for row in training_rows(broken / "implicit")] == [*range(1, STEPS + 1)]
    assert "resumes from step" in capfd.readouterr().err


def test_two_processes_give_the_same_loss_and_gradients_from_a_stored_model(whole):
    pair = whole.with_name("pair")
    initial = ("--stages", "implicit", "--initial", whole / "explicit" / "model")
    finish(train(pair, *initial, processes=2), pair, 0)
    rows, wanted = (training_rows(run / "implicit") for run in (pair, whole))
    for name in ("loss", "answer", "gradient_norm"):  # the first step has explicit answers alone
        assert rows[0][name] == pytest.approx(wanted[0][name], rel=1e-5), name
    for row, other in zip(rows, wanted, strict=True):  # the last one implicit answers alone
        assert row["answer"] == pytest.approx(other["answer"], rel=1e-4), row["step"]
    texts = [(run / "answers" / "cot_texts.jsonl").read_bytes() for run in (pair, whole)]
    assert texts[0] == texts[1]
