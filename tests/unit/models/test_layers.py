import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from c2ser_jax.models.layers import Dense, LayerNorm, Mlp, dropout, full_precision, gelu, layer_norm


def unboxed(tree):
    return nn.meta.unbox(tree)


def test_layer_norm_equals_the_formula():
    x = np.random.default_rng(0).normal(3, 2, (4, 7)).astype(np.float32)
    scale, bias = np.arange(7.0), np.arange(7.0) - 3
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 0.5)
    norm = jax.jit(layer_norm)
    found = norm(x, scale, bias, epsilon=0.5)
    np.testing.assert_allclose(found, exact * scale + bias, atol=1e-5)
    assert np.abs(norm(x, scale, bias, epsilon=0.4) - found).max() > 1e-3


def test_layer_norm_survives_a_large_mean():
    noise = np.random.default_rng(1).normal(0, 1, (2, 64))
    x = (1000 + noise).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(jax.jit(layer_norm)(x, epsilon=1e-5), exact, atol=2e-4)


def test_layer_norm_of_bfloat16_works_in_float32():
    x = np.random.default_rng(0).normal(4, 1, (3, 512)).astype(jnp.bfloat16)
    found = jax.jit(layer_norm)(x, epsilon=1e-5)
    exact = np.asarray(jax.jit(layer_norm)(x.astype(np.float32), epsilon=1e-5))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_gelu_is_the_exact_form():
    np.testing.assert_allclose(gelu(jnp.array([1.0, -2.0])), [0.84134475, -0.04550026], atol=1e-6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((100, 100))
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    y = np.asarray(jax.jit(dropout, static_argnums=1)(x, 0.3, jax.random.key(0)))
    assert abs(float((y == 0).mean()) - 0.3) < 0.02
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)


def test_dense_and_mlp_carry_an_axis_name_for_every_dimension():
    x = jnp.ones((2, 3, 8))
    boxed = jax.eval_shape(Mlp(hidden=20).init, jax.random.key(0), x)["params"]
    assert boxed["fc1"]["kernel"].names == ("width", "mlp")
    assert boxed["fc1"]["bias"].names == ("mlp",)
    assert boxed["fc2"]["kernel"].names == ("mlp", "width")
    assert unboxed(boxed)["fc2"]["kernel"].shape == (20, 8)
    norm = jax.eval_shape(LayerNorm(1e-5).init, jax.random.key(0), x)["params"]
    assert norm["scale"].names == ("width",)


def test_dense_computes_in_its_dtype_from_float32_parameters():
    x = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    module = Dense(5, ("width", "classes"), jnp.bfloat16)
    params = unboxed(jax.eval_shape(module.init, jax.random.key(0), x))
    assert params["params"]["kernel"].dtype == jnp.float32
    assert jax.eval_shape(module.apply, params, x).dtype == jnp.bfloat16


def test_float32_products_ask_for_full_precision_and_others_do_not():
    def precisions(dtype):
        def product(x):
            with full_precision(dtype):
                return x @ x

        jaxpr = jax.make_jaxpr(product)(jnp.ones((2, 2), dtype))
        return str(jaxpr)

    assert "HIGHEST" in precisions(jnp.float32)
    assert "HIGHEST" not in precisions(jnp.bfloat16)


def test_mlp_drops_in_training_only():
    x = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)
    module = Mlp(hidden=16, dropout=0.5)
    params = unboxed(jax.jit(module.init)(jax.random.key(0), x))
    apply = jax.jit(module.apply, static_argnames="train")
    still = np.asarray(apply(params, x))
    options = dict(train=True, rngs={"dropout": jax.random.key(2)})
    moving = apply(params, x, **options)
    np.testing.assert_array_equal(still, apply(params, x))
    np.testing.assert_array_equal(moving, apply(params, x, **options))
    assert np.abs(still - moving).max() > 1e-3


def test_a_stored_parameter_is_read_without_tracing_its_initialiser():
    calls = []

    def init(key, shape, dtype):
        calls.append(shape)
        return jnp.ones(shape, dtype)

    layer = Dense(3, ("width", None), kernel_init=init, use_bias=False)
    variables = layer.init(jax.random.key(0), jnp.ones((1, 4)))
    assert calls.pop() == (4, 3) and not calls
    for stored in (variables, nn.meta.unbox(variables)):
        np.testing.assert_allclose(layer.apply(stored, jnp.ones((1, 4))), 4.0)
    assert not calls
    with pytest.raises(ScopeParamShapeError, match=r"\(4, 3\)"):
        layer.apply({"params": {"kernel": jnp.ones((4, 2))}}, jnp.ones((1, 4)))
