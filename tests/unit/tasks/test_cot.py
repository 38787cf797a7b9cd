"""The chain-of-thought task: answer tokens alone count, and what is frozen stays as it was."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.tasks.cot import TEACHER, ChainOfThought, CotConfig
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.checkpoint import flatten, nest
from c2ser_jax.training.loop import split_batch
from c2ser_jax.training.state import state_shapes
from tests.tiny_answers import MODEL, TASK, make_data

WHOLE = ChainOfThought(TASK, MODEL)


@functools.cache
def whole_batch():
    """Four rows, two of them explicit or so."""
    stream = make_data(rows=4, steps=3).batches(1)
    batch, _ = split_batch(next(stream))
    stream.close()
    return batch


@functools.cache
def params():
    """Random parameters, both factors of every adapter included, and a teacher that is the same."""
    init = ChainOfThought(TASK, MODEL).init
    shapes = flatten(meta.unbox(jax.eval_shape(init, jax.random.key(0), whole_batch())))
    rng, made = np.random.default_rng(0), {}
    for path, leaf in shapes.items():
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("kernel"):
            noise /= np.sqrt(leaf.shape[-2] * (leaf.shape[0] if "conv" in path else 1))
        made[path] = 1 + 0.1 * noise if path.endswith("scale") else 0.3 * noise
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
    found = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(-found["log_probability"].sum(), total, rtol=1e-5)
    hits = sum((found["tokens"][i, :n] == batch["answer"][i, :n]).sum()
               for i, n in enumerate(batch["answer_tokens"]))  # fmt: skip
    assert hits == evaluated(batch)[1]["token_accuracy"][0]


def params_without_teacher():
    return {part: leaves for part, leaves in params().items() if part != TEACHER}


def test_training_drops_and_augments_by_the_key_and_evaluation_does_not():
    cfg, batch = dataclasses.replace(TASK, distillation_weight=0.0), whole_batch()
    one, same, other = (
        float(loss(params_without_teacher(), batch, jax.random.key(k), cfg=cfg)[0]["answer"][0])
        for k in (0, 0, 1)
    )
    plain = float(evaluated(batch)[0]["answer"][0])
    assert one == same != other and plain not in (one, other)
    again = loss(params(), batch, jax.random.key(1), train=False)[0]["answer"][0]
    assert plain == float(again)


def test_the_teacher_says_what_the_student_says_until_that_learns():
    explicit = dict(whole_batch())
    for name in ("prompt", "prompt_tokens", "answer", "answer_tokens"):
        explicit[name] = explicit[f"teacher_{name}"]
    assert abs(float(evaluated(explicit)[0]["distillation"][0])) < 1e-4
    assert float(evaluated(whole_batch())[0]["distillation"][0]) > 1e-2  # other words before it
    moved = flatten(params())
    moved["llm/layers/mlp/down_proj/lora_b"] = moved["llm/layers/mlp/down_proj/lora_b"] + 0.5
    found = loss(nest(moved), explicit, jax.random.key(0), train=False)[0]
    assert float(found["distillation"][0]) > 1e-2


def test_the_published_inputs_are_deaf_to_the_speech_encoder():
    cfg = CotConfig(inputs="acoustic")
    deaf = flatten(params_without_teacher())
    for path in deaf:
        if path.startswith(("encoder/", "connector/down_sample/")):
            deaf[path] = np.zeros_like(deaf[path])
    for inputs, other in ((cfg, False), (None, True)):
        found = [evaluate(tree, inputs) for tree in (params(), nest({**flatten(params()), **deaf}))]
        assert (abs(found[0] - found[1]) > 1e-3) == other


def evaluate(tree, cfg):
    """The loss of parameters, without dropout."""
    tree = tree if cfg is None else {k: v for k, v in tree.items() if k != TEACHER}
    found = loss(tree, whole_batch(), jax.random.key(0), cfg=cfg or TASK, train=False)
    return float(found[0]["answer"][0])


@pytest.mark.parametrize("paths", ["llm/", rf"(?!{TEACHER}/)", None])
def test_what_is_frozen_has_its_own_dtype_and_no_slots(paths):
    task, batch = WHOLE, whole_batch()
    structs = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in batch.items()}
    state = state_shapes(
        task, optimizers.build(optimizers.OptimizerConfig(), 4), structs, mesh=make_local_mesh(),
        trainable=task.trainable, frozen_dtype="bfloat16", frozen_dtype_paths=paths,
    )  # fmt: skip
    trained, frozen = flatten(state.trainable), flatten(state.frozen)
    assert flatten(state.frozen[TEACHER]).keys() == trained.keys()
    assert all(leaf.dtype == jnp.float32 for leaf in trained.values())
    for path, leaf in frozen.items():
        is_half = paths is None or re.match(paths, path)
        assert leaf.dtype == (jnp.bfloat16 if is_half else jnp.float32), path
    assert len([leaf for leaf in jax.tree.leaves(state.opt) if leaf.ndim]) == 2 * len(trained)


def test_frozen_weights_in_half_precision_are_widened_before_anything_is_computed():
    def stored(dtype, then, cfg=None):
        cast = {path: leaf.astype(dtype).astype(then) for path, leaf in frozen.items()}
        return evaluate(nest({**flatten(params()), **cast}), cfg)

    pattern = re.compile(ChainOfThought(TASK, MODEL).trainable)
    frozen = {p: a for p, a in flatten(params_without_teacher()).items() if not pattern.match(p)}
    for part in ("acoustic/", "llm/", "encoder/positions", "connector/"):
        assert any(path.startswith(part) for path in frozen), part
    alone = dataclasses.replace(TASK, distillation_weight=0.0)  # the same answers
    half = stored(jnp.bfloat16, jnp.bfloat16, alone)
    np.testing.assert_allclose(half, stored(jnp.bfloat16, jnp.float32), rtol=1e-6)
    assert abs(half - stored(jnp.float32, jnp.float32)) > 1e-5 * half


@pytest.mark.parametrize(
    "field, value",
    [("trainable", "head"), ("inputs", "none"), ("label_smoothing", 1.0),
     ("distillation_weight", -1.0)],
)  # fmt: skip
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        CotConfig(**{field: value})
