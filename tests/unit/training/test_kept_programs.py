"""Programs are kept by all that they depend on, and folds with equal settings share them."""

import dataclasses

import jax
import pytest

from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.stages import _classify, _pretrain
from c2ser_jax.tasks.classify import ClassifyConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.development import _pairs
from c2ser_jax.training.loop import LoopConfig, fit, jitted_step, planned_state
from c2ser_jax.training.optimizer import OptimizerConfig
from tests.unit.training.fakes import FakeData, FakeTask

TASK = FakeTask("encoder/")
LOOP = LoopConfig(steps=4, ema_decay=0.9, ema_anneal_steps=2, ema_end_decay=0.95)
ADAM = OptimizerConfig(schedule="cosine")


def program(task=TASK, loop=LOOP, adam=ADAM):
    optimizer = optimizers.build(adam, loop.steps)
    schedule = optimizers.learning_rate_schedule(adam, loop.steps)
    mesh = make_local_mesh()
    batch = next(FakeData(8).batches(0))
    structs = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype)
        for name, rows in batch.items()
        if hasattr(rows, "dtype") and rows.dtype.kind in "fiu"
    }
    with jax.set_mesh(mesh):
        state = planned_state(task, loop, optimizer, structs, mesh)
        return jitted_step(task, loop, optimizer, schedule, state, mesh)


def test_equal_settings_have_one_program():
    again = dataclasses.replace(LOOP, log_every=7)  # not the step's business
    assert program() is program(loop=again, adam=dataclasses.replace(ADAM))


@pytest.mark.parametrize(
    "changed",
    [
        {"task": FakeTask("encoder/")},
        {"adam": dataclasses.replace(ADAM, learning_rate=0.5)},
        *(
            {"loop": dataclasses.replace(LOOP, **change)}
            for change in (
                {"steps": 5}, {"microbatches": 2}, {"ema_decay": 0.8}, {"ema_end_decay": 0.99},
                {"ema_anneal_steps": 3}, {"trainable": "encoder/"},
            )
        ),
    ],
)  # fmt: skip
def test_another_setting_has_another_program(changed):
    assert program() is not program(**changed)


def test_a_second_run_traces_nothing(tmp_path):
    """Two folds: other data and another seed, the same shapes and settings."""
    traced = []

    class Counted(FakeTask):
        def loss(self, *arguments):
            traced.append("loss")
            return super().loss(*arguments)

        def init(self, *arguments):
            traced.append("init")
            return super().init(*arguments)

    task, counts = Counted("encoder/"), []
    for seed in (1, 2):
        result = fit(
            task, FakeData(8), cfg=LOOP, optimizer_cfg=ADAM, mesh=make_local_mesh(), seed=seed,
            workdir=tmp_path / str(seed),
        )  # fmt: skip
        counts.append((len(traced), float(result.history[-1]["loss"])))
    (once, first), (twice, second) = counts
    assert once == twice > 0 and first != second


def test_losses_on_development_data_are_kept_by_task_and_seed():
    assert _pairs(TASK, 1) is _pairs(TASK, 1)
    assert _pairs(TASK, 1) is not _pairs(TASK, 2)
    assert _pairs(TASK, 1) is not _pairs(FakeTask("encoder/"), 1)


def test_stages_of_equal_settings_have_one_task():
    """Settings that a config file gives as lists are kept like any other."""
    layers = [ConvLayer(8, 20, 20), ConvLayer(8, 16, 16)]
    encoder = Emotion2VecConfig(width=16, heads=2, conv_layers=layers)  # type: ignore[arg-type]
    assert _pretrain(PretrainConfig(), encoder) is _pretrain(PretrainConfig(), encoder)
    one = _classify(ClassifyConfig(), encoder, ("angry", "sad"), None)
    assert one is _classify(ClassifyConfig(), encoder, ("angry", "sad"), None)
    balanced = ClassifyConfig(class_weights="balanced")
    few = _classify(balanced, encoder, ("angry", "sad"), (3, 5))
    assert few is not _classify(balanced, encoder, ("angry", "sad"), (4, 5))
    scales = OptimizerConfig(learning_rate_scales=[["encoder/", 0.1]])  # type: ignore[arg-type]
    assert optimizers.build(scales, 4) is optimizers.build(scales, 4)
