"""The loop: resume bit by bit, refuse another run, stop on NaN and on SIGTERM, keep a log."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.training.checkpoint import TrainingCheckpoints, flatten
from c2ser_jax.training.loop import LoopConfig, fit, split_batch
from c2ser_jax.training.optimizer import OptimizerConfig
from tests.unit.training.fakes import FEATURES, WIDTH, FakeData, FakeTask

LOOP = LoopConfig(
    steps=8, log_every=4, save_every=3, microbatches=2, ema_decay=0.9, ema_paths="encoder"
)
OPTIMIZER = OptimizerConfig(learning_rate=0.05, clip_norm=9.0)
TASK = FakeTask()  # one for all, which are spared its compilation


def train(workdir, *, task=None, data=None, loop=LOOP, **options):
    arguments = {"optimizer_cfg": OPTIMIZER, "seed": 5, "description": {"model": {"width": 10}}}
    return fit(
        task or TASK,
        data or FakeData(),
        cfg=loop,
        mesh=make_local_mesh(),
        workdir=workdir,
        **{**arguments, **options},
    )


class Interrupted(Exception):
    """Stands for a crash between two steps."""


class CrashingData(FakeData):
    """Fails when a certain step's batch is asked for."""

    def __init__(self, crash_step, **options):
        super().__init__(**options)
        self.crash_step, self.asked = crash_step, []

    def batch(self, step):
        self.asked.append(step)
        if step == self.crash_step:
            raise Interrupted
        return super().batch(step)


def leaves(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.state)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run and its directory."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(workdir)


def test_training_learns_and_logs(whole):
    workdir, result = whole
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history and [row["step"] for row in rows] == [4, 8]
    assert {"loss", "class", "teacher", "accuracy", "gradient_norm", "compile_seconds"} < set(
        rows[0]
    )
    weighted = rows[0]["class"] + 0.5 * rows[0]["teacher"]
    assert abs(rows[0]["loss"] - weighted) < 0.1
    assert rows[0]["compile_seconds"] > 0 == rows[1]["compile_seconds"]
    cosine = 0.05 * (1 + np.cos(np.pi * 7 / 8)) / 2
    assert rows[1]["learning_rate"] == pytest.approx(cosine, rel=1e-4)
    samples = sum(FakeData().batch(step)["audio_samples"].sum() for step in range(4, 8))
    assert rows[1]["audio_seconds_per_second"] * rows[1]["seconds"] == pytest.approx(
        samples / 16000
    )
    assert not result.stopped_by_signal and int(result.state.step) == 8
    assert rows[1]["class"] < 0.9 * rows[0]["class"]


def test_a_resumed_run_is_bit_identical(whole, tmp_path):
    data = CrashingData(5)
    with pytest.raises(Interrupted):
        train(tmp_path, data=data)
    resumed = CrashingData(None)
    result = train(tmp_path, data=resumed, evaluate=lambda state, step: {"score": 1.0})
    assert resumed.asked[0] == 3
    for ours, theirs in zip(leaves(result), leaves(whole[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [(r["kind"], r["step"]) for r in result.history] == [
        ("train", 4),
        ("train", 8),
        ("evaluate", 8),
    ]
    again = train(tmp_path, evaluate=lambda state, step: {"score": 1.0})
    assert again.history == result.history
    other = train(tmp_path / "other", seed=6)
    assert any(np.any(a != b) for a, b in zip(leaves(result), leaves(other), strict=True))


def test_old_checkpoints_go_but_milestones_stay(whole, tmp_path):
    assert TrainingCheckpoints(whole[0] / "checkpoints").latest() == 8
    assert sorted(p.name for p in (whole[0] / "checkpoints").iterdir()) == ["6", "8"]
    loop = dataclasses.replace(LOOP, save_every=1, keep_last=1, keep_every=3)
    train(tmp_path, loop=loop)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "6", "8"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loop": dataclasses.replace(LOOP, steps=9)}, r"loop.steps: 8 → 9"),
        ({"optimizer_cfg": OptimizerConfig(learning_rate=0.1)}, r"learning_rate: 0.05 → 0.1"),
        ({"seed": 1}, "seed: 5 → 1"),
        ({"data": FakeData(seed=9)}, "data_fingerprint"),
        ({"description": {"model": {"width": 11}}}, r"width: 10 → 11"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(whole, options, words):
    with pytest.raises(UserError, match=words) as caught:
        train(whole[0], **options)
    assert "--workdir" in str(caught.value)


def test_what_does_not_change_the_result_may_change(whole):
    loop = dataclasses.replace(LOOP, log_every=1, save_every=7, keep_last=5, progress=False)
    assert train(whole[0], loop=loop).history == whole[1].history


@pytest.mark.parametrize("poison_step", [0, 5, 7])
def test_a_nan_stops_the_run_with_its_batch_and_the_state_before(tmp_path, whole, poison_step):
    with pytest.raises(
        UserError, match=rf"step {poison_step}: the terms \['class', 'teacher'\]"
    ) as caught:
        train(tmp_path, data=FakeData(poison_step=poison_step))
    assert f"step{poison_step}row3" in str(caught.value)
    assert f"step{poison_step + 1}row3" not in str(caught.value)
    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() == poison_step
    # Going on without the poison gives what an unpoisoned run gives.
    for ours, theirs in zip(leaves(train(tmp_path)), leaves(whole[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sigterm_saves_and_the_next_start_goes_on(tmp_path, whole):
    class Preempted(FakeData):
        def batch(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    before = signal.getsignal(signal.SIGTERM)
    result = train(tmp_path, data=Preempted(), evaluate=lambda state, step: {"score": 1.0})
    assert result.stopped_by_signal and int(result.state.step) == 6
    assert all(row["kind"] == "train" for row in result.history)
    assert TrainingCheckpoints(tmp_path / "checkpoints").latest() == 6
    assert signal.getsignal(signal.SIGTERM) is before
    for ours, theirs in zip(leaves(train(tmp_path)), leaves(whole[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_initial_parameters_replace_leaves_and_frozen_ones_stay(tmp_path):
    given = {"encoder": {"bias": np.arange(WIDTH, dtype=np.float64)}}
    loop = dataclasses.replace(LOOP, trainable="proj", steps=2)
    result = train(tmp_path, loop=loop, init_params=given)
    np.testing.assert_array_equal(result.state.frozen["encoder"]["bias"], np.arange(WIDTH))
    assert set(flatten(result.state.trainable)) == {"proj/kernel", "proj/bias"}
    given["encoder"]["bias"][:] = 0
    assert result.state.frozen["encoder"]["bias"][3] == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"encoder": {"kernle": np.zeros(3)}}, "'encoder/kernle'"),
        ({"encoder": {"kernel": np.zeros((WIDTH, FEATURES))}}, r"'encoder/kernel'.*\[10, 6\]"),
    ],
)
def test_wrong_initial_parameters_get_a_sentence(tmp_path, given, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, init_params=given)


def test_a_changed_model_gets_a_list_of_differences(whole, monkeypatch):
    monkeypatch.setattr("tests.unit.training.fakes.WIDTH", WIDTH + 1)
    with pytest.raises(
        UserError, match=r"params: encoder/bias is \[10\] in it, \[11\] in this run"
    ):
        train(whole[0], task=FakeTask())


def test_evaluations_come_at_their_steps(tmp_path):
    seen = []

    def evaluate(state, step):
        seen.append((step, int(state.step)))
        return {"score": 0.5}

    train(tmp_path, loop=dataclasses.replace(LOOP, evaluate_every=3), evaluate=evaluate)
    assert seen == [(3, 3), (6, 6), (8, 8)]


def test_a_teacher_without_average_gets_a_sentence(tmp_path):
    with pytest.raises(UserError, match="ema_decay"):
        train(
            tmp_path,
            task=FakeTask(ema_paths="encoder"),
            loop=dataclasses.replace(LOOP, ema_decay=0.0),
        )


@pytest.mark.parametrize("values", [{"steps": 0}, {"ema_decay": 1.5}, {"trainable": "("}])
def test_an_impossible_loop_gets_a_sentence(values):
    with pytest.raises(UserError):
        LoopConfig(**values)


def test_only_numbers_go_to_the_device():
    batch = FakeData().batch(0)
    arrays, ids = split_batch({**batch, "speaker": np.array(["a"] * 8), "text": ["x"] * 8})
    assert set(arrays) == {"audio", "audio_samples", "label"} and ids[2] == "step0row2"


def test_an_error_of_the_data_is_raised_though_a_signal_came(tmp_path):
    class Failing(FakeData):
        def batch(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError("a worker is gone")
            return super().batch(step)

    with pytest.raises(RuntimeError, match="a worker is gone"):
        train(tmp_path, data=Failing())


def test_data_that_end_early_get_a_sentence(tmp_path):
    class Short(FakeData):
        def batches(self, start_step):
            return (self.batch(step) for step in range(3))

    with pytest.raises(UserError, match="the data ended before"):
        train(tmp_path, data=Short())
