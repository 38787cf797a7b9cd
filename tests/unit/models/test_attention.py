import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.attention import (
    IMPLEMENTATIONS,
    Attention,
    alibi_slopes,
    attend,
    frame_distances,
)

IN_BFLOAT16 = [("xla", 37)]
if jax.default_backend() == "gpu":
    IN_BFLOAT16 += [(name, frames) for name in IMPLEMENTATIONS for frames in (84, 37)]


run = jax.jit(attend, static_argnames=("implementation", "dropout_rate"))


def test_slopes_of_a_power_of_two_are_geometric():
    np.testing.assert_allclose(alibi_slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(1), [2.0**-8])


def test_slopes_of_twelve_heads_continue_with_every_second_of_sixteen():
    sixteen = 2.0 ** (-0.5 * np.arange(1, 17))
    wanted = [*0.5 ** np.arange(1, 9), *sixteen[[0, 2, 4, 6]]]
    np.testing.assert_allclose(alibi_slopes(12), wanted, rtol=1e-6)


def test_distances_are_zero_around_tokens_and_follow_given_indices():
    found = jax.jit(frame_distances, static_argnums=1)(np.array([[0, 3, 4]]), 2)
    wanted = np.zeros((1, 5, 5))
    wanted[0, 2:, 2:] = [[0, 3, 4], [3, 0, 1], [4, 1, 0]]
    np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 7, 3, 4)).astype(np.float32)
    bias = rng.standard_normal((1, 3, 7, 7)).astype(np.float32)
    mask = (np.arange(7) < np.array([[7], [4]]))[:, None, None]
    return query, key, value, bias, mask


def by_hand(query, key, value, bias, mask):
    query, key, value, bias = (np.asarray(x, np.float64) for x in (query, key, value, bias))
    logits = np.einsum("bqhc,bkhc->bhqk", query, key) / 2.0 + bias
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhc->bqhc", weights, value)


def test_attention_equals_the_formula(tensors):
    query, key, value, bias, mask = tensors
    found = run(query, key, value, bias=bias, mask=mask)
    np.testing.assert_allclose(found, by_hand(*tensors), atol=1e-6)
    unmasked = run(query, key, value, bias=bias, mask=np.ones_like(mask))
    assert np.abs(unmasked - by_hand(*tensors)).max() > 1e-2


def test_the_fused_kernel_gets_whole_masks_and_even_lengths(tensors, monkeypatch):
    def fused(query, key, value, bias, mask, *, implementation):
        assert implementation == "cudnn" and query.shape[1] % 2 == key.shape[1] % 2 == 0
        for x in (one for one in (bias, mask) if one is not None):
            assert x.shape[2:] == (query.shape[1], key.shape[1])
        return dot_product_attention(query, key, value, bias, mask, implementation="xla")

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)

    @jax.jit
    def both(query, key, value, bias, mask):
        options = dict(mask=mask, implementation="cudnn")
        return attend(query, key, value, bias=bias, **options), attend(query, key, value, **options)

    found, unbiased = both(*tensors)
    np.testing.assert_allclose(found, by_hand(*tensors), atol=1e-6)
    np.testing.assert_allclose(unbiased, by_hand(*tensors[:3], 0.0, tensors[4]), atol=1e-6)


def test_attention_with_weight_dropout_is_right_on_average(tensors):
    query, key, value, bias, mask = tensors
    one = run(query, key, value, bias=bias, mask=mask, dropout_rate=1e-9,
              dropout_key=jax.random.key(1))  # fmt: skip
    np.testing.assert_allclose(one, by_hand(*tensors), atol=1e-5)

    @jax.jit
    def draw(key_):
        keys = jax.random.split(key_, 4000)
        one = functools.partial(attend, query, key, value, bias=bias, mask=mask, dropout_rate=0.3)
        return jax.vmap(lambda key_: one(dropout_key=key_))(keys)

    draws = np.asarray(draw(jax.random.key(2)))
    assert np.abs(draws.mean(0) - by_hand(*tensors)).max() < 0.06
    assert draws.std(0).min() > 1e-3


@pytest.mark.parametrize("implementation, S", IN_BFLOAT16)
def test_bfloat16_attention_and_its_gradients_are_the_formula_rounded(implementation, S):
    rng = np.random.default_rng(0)
    query, key, value, towards = rng.standard_normal((4, 2, S, 4, 64)).astype(np.float32)
    bias = -np.abs(rng.standard_normal((1, 4, S, S))).astype(np.float32)
    mask = (np.arange(S) < np.array([[S], [20]]))[:, None, None]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(implementation, dtype, bias, *tensors):
        def loss(bias, *tensors):
            tensors = (x.astype(dtype) for x in tensors)
            y = attend(*tensors, bias=bias.astype(dtype), mask=mask, implementation=implementation)
            return (y * towards).sum(), y

        gradients, y = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(bias, *tensors)
        return y, *gradients

    found = run(implementation, "bfloat16", bias, query, key, value)
    wanted = run("xla", "float32", bias, query, key, value)
    for one, other in zip(found, wanted, strict=True):
        error = np.linalg.norm(np.asarray(one, np.float32) - other) / np.linalg.norm(other)
        assert error < 0.02


def test_masked_keys_get_no_gradient(tensors):
    query, key, value, _, mask = tensors
    grad = jax.jit(jax.grad(lambda value: attend(query, key, value, mask=mask).sum()))
    gradient = np.asarray(grad(value))
    assert (gradient[1, 4:] == 0).all() and (gradient[1, :4] != 0).any()


def test_weight_dropout_with_cudnn_is_refused_in_a_sentence(tensors):
    query, key, value, _, _ = tensors
    with pytest.raises(UserError, match="attention_dropout to 0"):
        attend(query, key, value, implementation="cudnn", dropout_rate=0.1,
               dropout_key=jax.random.key(0))  # fmt: skip


def test_cudnn_without_a_gpu_is_an_error_not_a_fallback(tensors):
    halves = [x.astype(jnp.bfloat16) for x in tensors[:3]]
    query, key, value = jax.device_put(halves, jax.devices("cpu")[0])
    with pytest.raises(Exception, match="(?i)cudnn|platform cpu"):
        attend(query, key, value, implementation="cudnn")


def test_qkv_axis_is_ordered_query_key_value_then_head():
    module = Attention(heads=3)
    x = np.random.default_rng(1).standard_normal((1, 5, 12)).astype(np.float32)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    kernel, bias = params["qkv"]["kernel"], params["qkv"]["bias"]
    parts = (part.reshape(1, 5, 3, 4) for part in np.split(x @ kernel + bias, 3, -1))
    y = by_hand(*parts, 0.0, True).reshape(1, 5, 12)
    wanted = y @ params["proj"]["kernel"] + params["proj"]["bias"]
    found = jax.jit(module.apply)({"params": params}, x)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
