"""The chain-of-thought task: answer tokens alone count, and what is frozen stays as it was."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.parallel.rules import RULES
from c2ser_jax.tasks.cot import TEACHER, ChainOfThought, CotConfig
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.checkpoint import flatten, nest
from c2ser_jax.training.loop import split_batch
from c2ser_jax.training.state import create_state, split_params, state_shapes
from c2ser_jax.training.step import make_train_step
from tests.tiny_answers import MODEL, TASK, make_data


@functools.cache
def whole_batch():
    """Four rows, two of them explicit or so."""
    stream = make_data(rows=4, steps=3).batches(1)
    batch, _ = split_batch(next(stream))
    stream.close()
    return batch


@functools.cache
def params():
    """Parameters, both factors of every adapter drawn, and a teacher that is the same."""
    init = jax.jit(lambda key: meta.unbox(ChainOfThought(TASK, MODEL).init(key, whole_batch())))
    made = flatten(init(jax.random.key(1)))
    rng = np.random.default_rng(0)
    for path, leaf in made.items():
        if path.endswith("lora_b"):
            made[path] = 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    prefix = f"{TEACHER}/"
    return nest({path: made[path.removeprefix(prefix)] for path in made})


@functools.partial(jax.jit, static_argnames=("cfg", "train"))
def loss(params, batch, key, cfg=TASK, train=True):
    return ChainOfThought(cfg, MODEL).loss(params, {}, None, batch, key, 0, train=train)


def evaluated(batch, cfg=TASK):
    return loss(params(), batch, jax.random.key(0), cfg=cfg, train=False)


def test_a_batch_is_the_sum_of_its_rows_and_padding_adds_nothing():
    batch = whole_batch()
    terms, metrics = evaluated(batch)
    alone = []
    for row in range(4):
        one = {name: np.concatenate([rows[row : row + 1], *[np.zeros_like(rows[:1])] * 3])
               for name, rows in batch.items()}  # fmt: skip
        alone.append(evaluated(one))
    for name in ("answer", "distillation"):
        total, count = (sum(np.float64(a[0][name][i]) for a in alone) for i in (0, 1))
        np.testing.assert_allclose(terms[name][0], total, rtol=1e-5)
        assert count == terms[name][1]
    assert terms["answer"][1] == batch["answer_tokens"].sum() == metrics["token_accuracy"][1]
    assert terms["distillation"][1] == batch["shared"].sum()


def test_it_is_the_likelihood_of_the_answer_that_predict_gives():
    batch = whole_batch()
    found = jax.jit(ChainOfThought(TASK, MODEL).predict)(params_without_teacher(), batch)
    total, _ = evaluated(batch)[0]["answer"]
    np.testing.assert_allclose(-found["log_probability"].sum(), total, rtol=1e-5)
    hits = sum((found["tokens"][i, :n] == batch["answer"][i, :n]).sum()
               for i, n in enumerate(batch["answer_tokens"]))  # fmt: skip
    assert hits == evaluated(batch)[1]["token_accuracy"][0]


def params_without_teacher():
    return {part: leaves for part, leaves in params().items() if part != TEACHER}


def test_training_drops_and_augments_by_the_key_and_evaluation_does_not():
    batch = whole_batch()
    one, same, other = (
        float(loss(params(), batch, jax.random.key(k))[0]["answer"][0]) for k in (0, 0, 1)
    )
    assert one == same != other
    plain = float(evaluated(batch)[0]["answer"][0])
    assert plain == float(loss(params(), batch, jax.random.key(1), train=False)[0]["answer"][0])
    assert plain not in (one, other)


@functools.cache
def after_steps(inputs):
    """(state at the start, after one step, what that reported), with a bfloat16 language model."""
    task = ChainOfThought(dataclasses.replace(TASK, inputs=inputs), MODEL)
    optimizer = optimizers.build(optimizers.OptimizerConfig(learning_rate=0.01), 4)
    mesh, batch = make_local_mesh(), whole_batch()
    structs = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in batch.items()}
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        shapes = state_shapes(
            task, optimizer, structs, mesh=mesh, trainable=task.trainable,
            frozen_dtype="bfloat16", frozen_dtype_paths="llm/",
        )  # fmt: skip
        given = {**params_without_teacher()}
        given[TEACHER] = split_params(given, task.trainable)[0]
        state = create_state(
            task, optimizer, structs, shapes, key=jax.random.key(0), init_params=given
        )
        step = make_train_step(task, optimizer, learning_rate=lambda _: 0.01)
        after, healthy, report = jax.jit(step)(
            state, True, batch, np.zeros(1, bool), jax.random.key(2)
        )
    assert bool(healthy)
    return state, after, report


def test_what_is_frozen_has_no_slots_and_stays_as_it_was_in_its_own_dtype():
    before, after, _ = after_steps("both")
    trained, frozen = flatten(after.trainable), flatten(after.frozen)
    assert not trained.keys() & frozen.keys()
    slots = [leaf for leaf in jax.tree.leaves(after.opt) if leaf.ndim]
    assert len(slots) == 2 * len(trained)
    for path, leaf in flatten(before.frozen).items():
        assert leaf.dtype == (jnp.bfloat16 if path.startswith("llm/") else jnp.float32)
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(frozen[path]), err_msg=path)
    assert all(leaf.dtype == jnp.float32 for leaf in trained.values())
    started = flatten(before.trainable)
    still = [p for p in trained if np.array_equal(trained[p], started[p])]
    assert not [path for path in still if not path.endswith("k_proj/bias")]


def test_the_teacher_is_what_the_stage_began_with():
    before, after, report = after_steps("both")
    teacher = flatten(before.frozen[TEACHER])
    assert teacher.keys() == flatten(before.trainable).keys()
    for path, leaf in flatten(before.trainable).items():
        np.testing.assert_array_equal(np.asarray(teacher[path]), np.asarray(leaf))
    assert float(report["terms"]["distillation"][0]) > 1e-4  # dropout, and implicit rows
    explicit = dict(whole_batch())
    for name in ("prompt", "prompt_tokens", "answer", "answer_tokens"):
        explicit[name] = explicit[f"teacher_{name}"]
    assert abs(float(evaluated(explicit)[0]["distillation"][0])) < 1e-5


def test_the_published_inputs_leave_the_speech_encoder_untaught():
    before, after, _ = after_steps("acoustic")
    started, ended = flatten(before.trainable), flatten(after.trainable)
    decayed = optimizers.OptimizerConfig().weight_decay * 0.01
    for path, leaf in ended.items():
        deaf = path.startswith(("encoder/", "connector/down_sample/"))
        unmoved = np.allclose(leaf, started[path] * (1 - decayed), atol=1e-6)
        unmoved |= np.array_equal(leaf, started[path])
        assert unmoved == deaf or path.endswith("k_proj/bias"), path


@pytest.mark.parametrize(
    "field, value",
    [("trainable", "head"), ("inputs", "none"), ("label_smoothing", 1.0),
     ("distillation_weight", -1.0)],
)  # fmt: skip
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        CotConfig(**{field: value})
