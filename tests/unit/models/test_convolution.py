"""Both convolutions equal their definition, in value and gradients, in every backend's form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from c2ser_jax.models.convolution import _convolve, _convolve_by_group, grouped_conv, strided_conv

GROUPED = [  # B, T, channels in, channels out, K, G
    (2, 11, 6, 15, 5, 3),
    (3, 4, 10, 4, 7, 2),
    (1, 1, 4, 8, 3, 4),
    (5, 23, 7, 9, 1, 1),
]
STRIDED = [  # B, N, channels in, channels out, K, stride
    (2, 53, 1, 7, 10, 5),
    (3, 20, 5, 4, 3, 2),
    (1, 9, 6, 11, 2, 2),
    (4, 3, 2, 5, 3, 2),
]


def random(*shape):
    """Standard normal float32 numbers that depend on the shape alone."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def strided_by_definition(x, kernel, stride):
    """The sum over taps and channels, in float64."""
    K = kernel.shape[0]
    frames = (x.shape[1] - K) // stride + 1
    windows = np.stack([x[:, t * stride : t * stride + K] for t in range(frames)], 1)
    return np.einsum("btkc,kco->bto", windows.astype(np.float64), kernel.astype(np.float64))


def grouped_by_definition(x, kernel, groups):
    """One plain convolution per group over zero-padded input, in float64."""
    pad = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (0, 0)))
    inputs, outputs = kernel.shape[1], kernel.shape[2] // groups
    parts = [
        strided_by_definition(
            x[..., g * inputs : (g + 1) * inputs], kernel[..., g * outputs : (g + 1) * outputs], 1
        )
        for g in range(groups)
    ]
    return np.concatenate(parts, -1)


def relative_error(a, b):
    return float(np.abs(np.asarray(a) - b).max() / np.abs(b).max())


@pytest.mark.parametrize("B, N, inputs, outputs, K, stride", STRIDED)
def test_strided_conv_is_its_definition(B, N, inputs, outputs, K, stride):
    x, kernel = random(B, N, inputs), random(K, inputs, outputs)
    truth = strided_by_definition(x, kernel, stride)
    assert (
        relative_error(
            jax.jit(strided_conv, static_argnames="stride")(x, kernel, stride=stride), truth
        )
        < 1e-6
    )


@pytest.mark.parametrize("B, T, inputs, outputs, K, groups", GROUPED)
def test_grouped_conv_is_its_definition(B, T, inputs, outputs, K, groups):
    x, kernel = random(B, T, inputs), random(K, inputs // groups, outputs)
    truth = grouped_by_definition(x, kernel, groups)
    assert relative_error(grouped_conv(x, kernel, groups=groups), truth) < 1e-6
    assert (
        relative_error(jax.jit(_convolve_by_group, static_argnums=2)(x, kernel, groups), truth)
        < 1e-6
    )
    assert relative_error(_convolve(x, kernel, 1, "SAME", groups), truth) < 1e-6


@pytest.mark.parametrize("B, T, inputs, outputs, K, groups", GROUPED)
def test_the_form_by_group_has_the_gradients_of_the_grouped_one(B, T, inputs, outputs, K, groups):
    x, kernel, weights = (
        random(B, T, inputs),
        random(K, inputs // groups, outputs),
        random(B, T, outputs),
    )

    def gradients(convolve):
        return jax.jit(jax.grad(lambda x, k: jnp.sum(weights * jnp.sin(convolve(x, k))), (0, 1)))(
            x, kernel
        )

    truth = gradients(lambda x, k: _convolve(x, k, 1, "SAME", groups))
    for ours, expected in zip(
        gradients(lambda x, k: grouped_conv(x, k, groups=groups)), truth, strict=True
    ):
        assert relative_error(ours, np.asarray(expected)) < 2e-6


@pytest.mark.parametrize("fault", ["groups exchanged", "taps reversed", "shifted by a frame"])
def test_a_wrong_convolution_is_noticed(fault):
    B, T, inputs, outputs, K, groups = GROUPED[0]
    x, kernel = random(B, T, inputs), random(K, inputs // groups, outputs)
    truth = grouped_by_definition(x, kernel, groups)
    wrong = {
        "groups exchanged": lambda: grouped_conv(
            jnp.roll(x, inputs // groups, -1), kernel, groups=groups
        ),
        "taps reversed": lambda: grouped_conv(x, kernel[::-1], groups=groups),
        "shifted by a frame": lambda: grouped_conv(jnp.roll(x, 1, 1), kernel, groups=groups),
    }[fault]()
    assert relative_error(wrong, truth) > 1e-2


def test_it_works_under_vmap_scan_and_remat():
    x, kernel = random(3, 2, 9, 6), random(5, 2, 6)

    def total(kernel):
        body = jax.checkpoint(lambda c, _: (jnp.sin(grouped_conv(c, kernel, groups=3)), None))
        return jnp.sum(jax.vmap(lambda x: lax.scan(body, x, length=2)[0])(x))

    def flat_total(kernel):
        y = jnp.asarray(x.reshape(6, 9, 6))
        for _ in range(2):
            y = jnp.sin(_convolve(y, kernel, 1, "SAME", 3))
        return jnp.sum(y)

    truth = np.asarray(jax.grad(flat_total)(kernel))
    assert relative_error(jax.jit(jax.grad(total))(kernel), truth) < 1e-5


@pytest.mark.parametrize("platform, grouped", [("cpu", False), ("cuda", True), ("tpu", True)])
def test_an_exported_step_holds_the_form_of_its_platform(platform, grouped):
    def loss(x, kernel):
        return jnp.sum(jnp.square(grouped_conv(x, kernel, groups=3)))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(2, 9, 6), (5, 2, 6)]]
    program = export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=[platform])(*shapes)
    assert ("group_count = 3" in program.mlir_module()) is grouped


def test_one_program_serves_three_platforms():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(2, 9, 6), (5, 2, 6)]]
    convolve = jax.jit(lambda x, kernel: grouped_conv(x, kernel, groups=3))
    program = export.export(convolve, platforms=["cpu", "cuda", "tpu"])(*shapes)
    x, kernel = random(2, 9, 6), random(5, 2, 6)
    assert relative_error(program.call(x, kernel), grouped_by_definition(x, kernel, 3)) < 1e-6
