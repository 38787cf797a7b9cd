"""Training checkpoints: saved in the background, whole or not at all, compared before loading."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.training.checkpoint import TrainingCheckpoints
from c2ser_jax.training.state import TrainState

META = {"seed": 3, "description": {"labels": ["a", "b"], "none": None}}


def state(value, width=4, ema=True):
    kernel = jnp.full((3, width), value, jnp.float32)
    return TrainState(
        step=jnp.int32(0),
        trainable={"proj": {"kernel": kernel}},
        frozen={"encoder": jnp.full((2,), value, jnp.bfloat16)},
        opt=({"count": jnp.int32(value)}, {"mu": kernel + 1}),
        ema={"proj": {"kernel": kernel + 2}} if ema else None,
    )


def structs(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


@pytest.fixture
def checkpoints(tmp_path):
    opened = TrainingCheckpoints(tmp_path / "checkpoints", keep_last=2)
    yield opened
    opened.close()


def assert_equal(got, wanted):
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_saved_comes_back_though_the_state_was_donated(checkpoints):
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    saved = double(state(5))
    checkpoints.save(7, saved, META)
    for _ in range(3):
        saved = double(saved)
    checkpoints.wait()
    assert checkpoints.latest() == 7 and checkpoints.read_meta(7) == META
    restored = checkpoints.restore(7, structs(state(0)))
    assert int(restored.step) == 7
    wanted = jax.tree.map(lambda x: x * 2, state(5)).replace(step=restored.step)
    assert_equal(restored, wanted)
    params = checkpoints.restore_params(7, structs({**state(0).trainable, **state(0).frozen}))
    assert_equal(params, {**wanted.trainable, **wanted.frozen})


def test_only_the_newest_are_kept(checkpoints):
    for step in (1, 2, 3, 4):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    assert sorted(int(p.name) for p in checkpoints.directory.iterdir()) == [3, 4]
    assert_equal(checkpoints.restore(3, structs(state(0))).trainable, state(3).trainable)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (state(0, width=5), r"params: proj/kernel is \[3, 4\] in it, \[3, 5\] in this run"),
        (state(0).replace(frozen={}), "params: unknown encoder"),
        (state(0).replace(opt=()), "opt: unknown 0/count"),
        (state(0).replace(ema={"proj": {"bias": jnp.zeros(2)}}), "ema: no proj/bias in it"),
    ],
)
def test_a_misfit_gets_a_list_of_differences(checkpoints, wanted, words):
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    with pytest.raises(UserError, match=words):
        checkpoints.restore(1, structs(wanted))


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path, capfd):
    checkpoints = TrainingCheckpoints(tmp_path / "c", keep_last=1)
    checkpoints.save(1, state(1), META)
    checkpoints.wait()
    large = state(2).replace(opt={"mu": jax.random.normal(jax.random.key(0), (300_000,))})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        checkpoints.save(2, large, META)
        with pytest.raises(UserError, match="could not save .*: File too large; earlier"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        checkpoints.close()
    assert capfd.readouterr().err == ""
    again = TrainingCheckpoints(tmp_path / "c", keep_last=1)
    assert again.latest() == 1
    assert_equal(again.restore(1, structs(state(0))).opt, state(1).opt)
    again.save(2, large, META)
    again.close()
    assert TrainingCheckpoints(tmp_path / "c").latest() == 2
