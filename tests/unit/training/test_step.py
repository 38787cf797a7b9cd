"""One step: exact over microbatches, frozen parts without slots, NaN leaves the state alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.model_directory import flatten
from c2ser_jax.training.state import create_state, merge_params, split_params, state_shapes
from c2ser_jax.training.step import (
    annealed_decay,
    cut,
    loss_and_gradients,
    make_train_step,
    update_average,
)

B, N, F = 12, 7, 5


class Regression:
    """Two terms with different counts per row: a mean of means would give another gradient."""

    name = "regression"
    weights = {"squared": 2.0, "absolute": 0.25, "logged": 0.0}
    ema_paths = None
    traces = 0

    def init(self, key, batch):
        return {"encoder": {"kernel": jax.random.normal(key, (F, 3))}, "proj": jnp.ones((3,))}

    def loss(self, trainable, frozen, ema, batch, key, step):
        type(self).traces += 1
        params = merge_params(trainable, frozen)
        hidden = jnp.tanh(batch["x"] @ params["encoder"]["kernel"])
        error = (hidden @ params["proj"] - batch["y"]) * batch["mask"]
        long = batch["mask"].sum(1) > 3
        terms = {
            "squared": (jnp.sum(error**2), jnp.sum(batch["mask"])),
            "absolute": (jnp.sum(jnp.abs(error).sum(1) * long), jnp.sum(long)),
            "logged": (jnp.sum(hidden), jnp.sum(batch["mask"])),
        }
        return terms, {"rows": (jnp.float32(1), jnp.float32(batch["x"].shape[0]))}


def example():
    rng = np.random.default_rng(0)
    mask = (np.arange(N)[None] < rng.integers(1, N + 1, (B, 1))).astype(np.float32)
    return {
        "x": rng.normal(size=(B, N, F)).astype(np.float32),
        "y": rng.normal(size=(B, N)).astype(np.float32),
        "mask": mask,
    }


def start(task, *, trainable=".*", ema=None, learning_rate=0.1):
    optimizer = optimizers.build(
        optimizers.OptimizerConfig(learning_rate=learning_rate, schedule="constant"), 10
    )
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in example().items()}
    shapes = state_shapes(
        task, optimizer, batch, mesh=make_local_mesh(), trainable=trainable, ema=ema
    )
    return optimizer, create_state(task, optimizer, batch, shapes, key=jax.random.key(3))


def run_step(task, optimizer, state, healthy=True, **options):
    step = make_train_step(task, optimizer, learning_rate=lambda step: 0.1 * (step + 1), **options)
    return jax.jit(step)(
        state, jnp.bool_(healthy), example(), jnp.zeros(1, bool), jax.random.key(0)
    )


@jax.jit
def closed_form(trainable):
    """The divided loss of the whole batch, written out."""
    batch, task = example(), Regression()
    terms, _ = task.loss(trainable, {}, None, batch, None, 0)
    return 2.0 * terms["squared"][0] / terms["squared"][1] + (
        0.25 * terms["absolute"][0] / terms["absolute"][1]
    )


closed_gradient = jax.jit(jax.value_and_grad(closed_form))


@pytest.mark.parametrize("microbatches", [1, 2, 3, 4])
def test_loss_and_gradients_do_not_depend_on_the_cut(microbatches):
    task = Regression()
    _, state = start(task)
    wanted_loss, wanted = closed_gradient(state.trainable)
    Regression.traces = 0
    loss, grads, terms, metrics = jax.jit(
        lambda s, b, k: loss_and_gradients(task, s, b, k, microbatches=microbatches)
    )(state, example(), jax.random.key(0))
    assert Regression.traces == 1
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for path, grad in flatten(grads).items():
        np.testing.assert_allclose(grad, flatten(wanted)[path], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(terms["squared"][1], example()["mask"].sum())
    assert float(metrics["rows"][0]) == microbatches and float(metrics["rows"][1]) == B


def test_a_mean_of_means_would_be_noticed():
    task = Regression()
    _, state = start(task)
    loss = jax.jit(task.loss)
    parts = cut(example(), 3)
    losses = []
    for m in range(3):
        part = {name: rows[m] for name, rows in parts.items()}
        terms, _ = loss(state.trainable, {}, None, part, None, 0)
        losses.append(sum(task.weights[n] * s / c for n, (s, c) in terms.items()))
    assert abs(np.mean(losses) - closed_form(state.trainable)) > 1e-2


def test_counting_first_costs_no_model_pass():
    task = Regression()
    _, state = start(task)
    products = []
    for microbatches in (1, 2):
        program = jax.jit(
            lambda s, b, k, m=microbatches: loss_and_gradients(task, s, b, k, microbatches=m)
        ).lower(state, example(), jax.random.key(0))
        text = program.compile().as_text()
        assert text is not None
        products.append(len(re.findall(r" tanh\(", text)))
    assert products[0] == products[1] > 0


def test_rows_keep_their_neighbourhood_when_cut():
    parts = cut({"x": jnp.arange(6)}, 3)["x"]
    np.testing.assert_array_equal(parts, [[0, 3], [1, 4], [2, 5]])
    with pytest.raises(UserError, match="6 rows cannot be cut into 4"):
        cut({"x": jnp.arange(6)}, 4)


def test_frozen_parts_stay_and_have_no_slots():
    task = Regression()
    optimizer, state = start(task, trainable="proj")
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt)]
    assert (F, 3) not in shapes and shapes.count((3,)) == 2
    new, _, report = run_step(task, optimizer, state)
    np.testing.assert_array_equal(
        new.frozen["encoder"]["kernel"], state.frozen["encoder"]["kernel"]
    )
    assert np.all(new.trainable["proj"] != state.trainable["proj"])
    assert int(new.step) == 1 and not bool(report["stop"])


def test_frozen_parts_pass_a_step_through_without_an_operation():
    task = Regression()
    optimizer, state = start(task, trainable="proj")
    step = make_train_step(task, optimizer, learning_rate=lambda step: 0.1)
    key, flags = jax.random.key(0), (jnp.bool_(True), jnp.zeros(1, bool))
    new, _, _ = step(state, flags[0], example(), flags[1], key)
    assert new.frozen["encoder"]["kernel"] is state.frozen["encoder"]["kernel"]
    assert new.trainable["proj"] is not state.trainable["proj"]


def test_a_step_equals_one_optax_update():
    task = Regression()
    optimizer, state = start(task)
    _, grads = closed_gradient(state.trainable)
    updates, _ = optimizer.update(grads, state.opt, state.trainable)
    wanted = optax.apply_updates(state.trainable, updates)
    new, healthy, report = run_step(task, optimizer, state, microbatches=3)
    assert bool(healthy)
    np.testing.assert_allclose(report["gradient_norm"], optax.tree.norm(grads), rtol=1e-5)
    np.testing.assert_allclose(report["learning_rate"], 0.1)
    for path, leaf in flatten(new.trainable).items():
        np.testing.assert_allclose(leaf, flatten(wanted)[path], rtol=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_and_all_after_it_leave_the_state_alone(where):
    class Bad(Regression):
        def loss(self, trainable, frozen, ema, batch, key, step):
            terms, metrics = super().loss(trainable, frozen, ema, batch, key, step)
            kernel = jnp.abs(trainable["encoder"]["kernel"]).sum()
            # The square root of zero: a finite value with an infinite gradient.
            extra = {"loss": jnp.nan, "gradient": jnp.sqrt(kernel * 0.0)}[where]
            total, count = terms["squared"]
            return {**terms, "squared": (total + extra, count)}, metrics

    optimizer, state = start(Bad(), ema=".*")
    options = {"ema_decay": lambda step: 0.5}
    bad, healthy, _ = run_step(Bad(), optimizer, state, **options)
    assert not bool(healthy)
    after, healthy, _ = run_step(Regression(), optimizer, bad, bool(healthy), **options)
    assert not bool(healthy)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(new, old)
    again, _, _ = run_step(Regression(), optimizer, bad, **options)
    assert int(again.step) == 1


def test_averages_follow_their_annealed_decay():
    decay = annealed_decay(0.9, 0.99, 10)
    np.testing.assert_allclose([decay(0), decay(5), decay(10), decay(20)], [0.9, 0.945, 0.99, 0.99])
    np.testing.assert_allclose(annealed_decay(0.5, 0.7, 0)(0), 0.7)
    task = Regression()
    optimizer, state = start(task, trainable="proj", ema="proj|encoder")
    new, _, _ = run_step(task, optimizer, state, ema_decay=annealed_decay(0.0, 1.0, 4))
    # The first update already counts as update 1: decay 0.25.
    wanted = 0.25 * state.trainable["proj"] + 0.75 * new.trainable["proj"]
    np.testing.assert_allclose(new.ema["proj"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(new.ema["encoder"]["kernel"], state.frozen["encoder"]["kernel"])
    assert update_average({"a": jnp.ones(2)}, {"a": jnp.zeros(2), "b": 0}, 0.5).keys() == {"a"}


def test_a_term_without_weight_gets_a_sentence():
    class Unweighted(Regression):
        weights = {"squared": 1.0}

    optimizer, state = start(Unweighted())
    with pytest.raises(UserError, match=r"absolute.*logged"):
        run_step(Unweighted(), optimizer, state)


def test_split_and_merge_are_inverse():
    params = {"encoder": {"a": 1, "b": {"c": 2}}, "proj": 3}
    chosen, rest = split_params(params, "encoder/b|proj")
    assert chosen == {"encoder": {"b": {"c": 2}}, "proj": 3} and rest == {"encoder": {"a": 1}}
    assert merge_params(chosen, rest) == params
    with pytest.raises(ValueError, match="proj"):
        merge_params(chosen, {"proj": 4})
    with pytest.raises(UserError, match="regular expression"):
        split_params(params, "(")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"trainable": "decoder"}, "decoder"), ({"ema": "decoder"}, "averaged parameters")],
)
def test_a_pattern_that_matches_nothing_gets_a_sentence(options, words):
    with pytest.raises(UserError, match=words):
        start(Regression(), **options)
