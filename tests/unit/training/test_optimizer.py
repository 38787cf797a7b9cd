"""Schedules in closed form, and updates against Adam written out in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.training.optimizer import (
    DECAY_ALL,
    OptimizerConfig,
    build,
    learning_rate_schedule,
)

PARAMS = {
    "encoder": {"kernel": jnp.array([[1.0, -2.0, 3.0]]), "bias": jnp.array([0.5])},
    "proj": {"kernel": jnp.array([4.0, 5.0])},
}
GRADS = {
    "encoder": {"kernel": jnp.array([[0.1, 0.2, -0.3]]), "bias": jnp.array([-0.4])},
    "proj": {"kernel": jnp.array([0.5, -0.6])},
}


def test_warmup_rises_to_the_peak_and_cosine_falls_to_the_end():
    cfg = OptimizerConfig(learning_rate=0.4, warmup_steps=4, end_learning_rate=0.1)
    rate = learning_rate_schedule(cfg, 14)
    np.testing.assert_allclose([rate(s) for s in range(5)], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    for step in range(4, 15):
        share = (step - 4) / 10
        wanted = 0.1 + 0.3 * 0.5 * (1 + np.cos(np.pi * share))
        np.testing.assert_allclose(rate(step), wanted, rtol=1e-5)


def test_linear_and_constant_schedules():
    linear = learning_rate_schedule(
        OptimizerConfig(learning_rate=1.0, schedule="linear", end_learning_rate=0.5), 10
    )
    np.testing.assert_allclose([linear(0), linear(5), linear(10)], [1, 0.75, 0.5])
    constant = learning_rate_schedule(OptimizerConfig(learning_rate=0.3, schedule="constant"), 10)
    np.testing.assert_allclose([constant(0), constant(9)], [0.3, 0.3], rtol=1e-6)


def test_the_published_schedule_peaks_at_the_warmup_and_falls_with_the_root():
    cfg = OptimizerConfig(learning_rate=0.4, warmup_steps=4, schedule="published")
    rate = learning_rate_schedule(cfg, 100)
    found = [rate(s) for s in (0, 1, 2, 3, 4, 16, 64)]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.2, 0.3, 0.4, 0.2, 0.1], rtol=1e-6)


def test_everything_decays_where_nothing_is_excluded():
    cfg = OptimizerConfig(learning_rate=0.1, weight_decay=0.3, schedule="constant", epsilon=1e-3)
    got = three_steps(dataclasses.replace(cfg, decay_exclude=DECAY_ALL))
    wanted = numpy_adam(cfg, PARAMS["encoder"]["bias"], GRADS["encoder"]["bias"], 3, True)
    np.testing.assert_allclose(got["encoder"]["bias"], wanted, rtol=1e-5)


def numpy_adam(cfg, params, grads, steps, decays, scale=1.0):
    """Adam with the same gradient `steps` times (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""
    x = np.array(params, np.float64)
    m = v = np.zeros_like(x)
    for t in range(1, steps + 1):
        g = np.array(grads, np.float64)
        if decays and cfg.name == "adam":
            g = g + cfg.weight_decay * x
        m = cfg.beta1 * m + (1 - cfg.beta1) * g
        v = cfg.beta2 * v + (1 - cfg.beta2) * g * g
        update = (m / (1 - cfg.beta1**t)) / (np.sqrt(v / (1 - cfg.beta2**t)) + cfg.epsilon)
        if decays and cfg.name == "adamw":
            update = update + cfg.weight_decay * x
        x = x - scale * cfg.learning_rate * update
    return x


def three_steps(cfg):
    optimizer = build(cfg, 10)
    params, slots = PARAMS, optimizer.init(PARAMS)
    for _ in range(3):
        updates, slots = optimizer.update(GRADS, slots, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_updates_equal_adam_written_out_and_biases_do_not_decay(name):
    cfg = OptimizerConfig(
        name=name, learning_rate=0.1, weight_decay=0.3, schedule="constant", epsilon=1e-3
    )
    got = three_steps(cfg)
    for part, leaf, decays in (("encoder", "kernel", True), ("encoder", "bias", False)):
        wanted = numpy_adam(cfg, PARAMS[part][leaf], GRADS[part][leaf], 3, decays)
        np.testing.assert_allclose(got[part][leaf], wanted, rtol=1e-5)
        wrong = numpy_adam(cfg, PARAMS[part][leaf], GRADS[part][leaf], 3, not decays)
        assert np.abs(got[part][leaf] - wrong).max() > 1e-3


def test_learning_rate_scales_follow_the_first_pattern():
    scales = (("encoder/bias", 0.0), ("encoder/", 0.1))
    cfg = OptimizerConfig(learning_rate=0.1, schedule="constant", learning_rate_scales=scales)
    got = three_steps(cfg)
    np.testing.assert_array_equal(got["encoder"]["bias"], PARAMS["encoder"]["bias"])
    for part, scale in (("encoder", 0.1), ("proj", 1.0)):
        wanted = numpy_adam(cfg, PARAMS[part]["kernel"], GRADS[part]["kernel"], 3, True, scale)
        np.testing.assert_allclose(got[part]["kernel"], wanted, rtol=1e-5)


def test_clipping_scales_all_gradients_by_one_norm():
    cfg = OptimizerConfig(
        learning_rate=1.0, clip_norm=0.5, weight_decay=0.0, epsilon=1e9, schedule="constant"
    )
    optimizer = build(cfg, 10)
    # With a huge epsilon Adam is linear in the gradient, so the clipping shows.
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(GRADS)))
    for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(GRADS), strict=True):
        np.testing.assert_allclose(np.array(update) * 1e9, -np.array(grad) * 0.5 / norm, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "sgd"}, "sgd"),
        ({"schedule": "step"}, "cosine.*published"),
        ({"schedule": "published"}, "warmup_steps ≥ 1"),
        ({"schedule": "published", "warmup_steps": 9, "end_learning_rate": 0.1}, "no end_learning"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"decay_exclude": "("}, "regular expression"),
    ],
)
def test_an_impossible_optimizer_gets_a_sentence(values, words):
    with pytest.raises(UserError, match=words):
        OptimizerConfig(**values)


def test_a_warmup_longer_than_the_run_gets_a_sentence():
    with pytest.raises(UserError, match="warm-up must end"):
        build(OptimizerConfig(warmup_steps=20), 10)
