"""Both convolutions equal their definition, in value and gradients, in every backend's form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from c2ser_jax.models.convolution import convolve, grouped_conv, row_by_row, strided_conv

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
    return float(np.abs(np.asarray(a) - b).max() / np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("B, N, inputs, outputs, K, stride", STRIDED)
def test_strided_conv_is_its_definition(B, N, inputs, outputs, K, stride):
    x, kernel = random(B, N, inputs), random(K, inputs, outputs)
    truth = strided_by_definition(x, kernel, stride)

    @jax.jit
    def both(x, kernel):
        return strided_conv(x, kernel, stride=stride), convolve(x, kernel, stride=stride)

    for found in both(x, kernel):
        assert relative_error(found, truth) < 1e-6


@pytest.mark.parametrize("B, T, inputs, outputs, K, groups", GROUPED)
def test_grouped_conv_is_its_definition(B, T, inputs, outputs, K, groups):
    x, kernel = random(B, T, inputs), random(K, inputs // groups, outputs)
    truth = grouped_by_definition(x, kernel, groups)

    @jax.jit
    def both(x, kernel):
        plain = convolve(x, kernel, padding="SAME", groups=groups)
        return grouped_conv(x, kernel, groups=groups), plain

    for found in both(x, kernel):
        assert relative_error(found, truth) < 1e-6


def gradients(convolution, x, kernel):
    """Of a weighted sum over sin(output), compiled; with respect to input and kernel."""

    def loss(x, kernel):
        y = convolution(x, kernel)
        return jnp.sum(random(*y.shape) * jnp.sin(y))

    return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, (0, 1)))(x, kernel))


@pytest.mark.parametrize("B, N, inputs, outputs, K, stride", [*STRIDED, (2, 17, 65, 3, 3, 2)])
def test_strided_gradients_are_those_of_the_plain_convolution(B, N, inputs, outputs, K, stride):
    x, kernel = random(B, N, inputs), random(K, inputs, outputs)
    truth = gradients(lambda x, k: convolve(x, k, stride=stride), x, kernel)
    ours = gradients(lambda x, k: strided_conv(x, k, stride=stride), x, kernel)
    for a, b in zip(ours, truth, strict=True):
        assert relative_error(a, b) < 2e-6
        assert relative_error(np.roll(a, 1, 0 if a.shape[0] > 1 else 1), b) > 1e-2


@pytest.mark.parametrize("B, T, inputs, outputs, K, groups", GROUPED)
def test_grouped_gradients_are_those_of_the_plain_convolution(B, T, inputs, outputs, K, groups):
    x, kernel = random(B, T, inputs), random(K, inputs // groups, outputs)
    truth = gradients(lambda x, k: convolve(x, k, padding="SAME", groups=groups), x, kernel)
    ours = gradients(lambda x, k: grouped_conv(x, k, groups=groups), x, kernel)
    for a, b in zip(ours, truth, strict=True):
        assert relative_error(a, b) < 2e-6
        assert relative_error(np.roll(a, 1, -1), b) > 1e-2


three_groups = jax.jit(functools.partial(grouped_conv, groups=3))


@pytest.mark.parametrize("fault", ["groups exchanged", "taps reversed", "shifted by a frame"])
def test_a_wrong_convolution_is_noticed(fault):
    B, T, inputs, outputs, K, groups = GROUPED[0]
    x, kernel = random(B, T, inputs), random(K, inputs // groups, outputs)
    wrong_x, wrong_kernel = {
        "groups exchanged": (np.roll(x, inputs // groups, -1), kernel),
        "taps reversed": (x, kernel[::-1]),
        "shifted by a frame": (np.roll(x, 1, 1), kernel),
    }[fault]
    truth = grouped_by_definition(x, kernel, groups)
    assert relative_error(three_groups(wrong_x, wrong_kernel), truth) > 1e-2


def test_gradients_hold_under_vmap_scan_and_remat():
    x, kernel, stem = random(3, 2, 19, 6), random(5, 2, 6), random(3, 6, 6)

    def two_layers(x, kernel, stem):
        x = jnp.sin(strided_conv(x, stem, stride=2))
        return jnp.sin(grouped_conv(x, kernel, groups=3))

    def total(kernel, stem):
        def add_one(sum, x):
            return sum + jnp.sum(jax.checkpoint(two_layers)(x[None], kernel, stem)), None

        return jnp.sum(jax.vmap(lambda rows: lax.scan(add_one, 0.0, rows)[0])(x))

    def flat_total(kernel, stem):
        y = jnp.sin(convolve(x.reshape(6, 19, 6), stem, stride=2))
        return jnp.sum(jnp.sin(convolve(y, kernel, padding="SAME", groups=3)))

    truth = jax.jit(jax.grad(flat_total, (0, 1)))(kernel, stem)
    for ours, expected in zip(jax.jit(jax.grad(total, (0, 1)))(kernel, stem), truth, strict=True):
        assert relative_error(ours, expected) < 1e-5


SHAPES = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(2, 9, 6), (5, 2, 6)]]


@pytest.mark.parametrize("platform, grouped", [("cpu", False), ("cuda", True), ("tpu", True)])
def test_an_exported_step_holds_the_form_of_its_platform(platform, grouped):
    def loss(x, kernel):
        return jnp.sum(jnp.square(grouped_conv(x, kernel, groups=3)))

    program = export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=[platform])(*SHAPES)
    assert ("group_count = 3" in program.mlir_module()) is grouped


def test_one_program_serves_three_platforms():
    program = jax.jit(lambda x, kernel: grouped_conv(x, kernel, groups=3))
    program = export.export(program, platforms=["cpu", "cuda", "tpu"])(*SHAPES)
    x, kernel = random(2, 9, 6), random(5, 2, 6)
    assert relative_error(program.call(x, kernel), grouped_by_definition(x, kernel, 3)) < 1e-6


def test_no_convolution_in_a_training_step_is_left_to_the_plain_loop():
    """XLA:CPU takes only [batch, time, channel] x [time, in, out], ungrouped, inside a loop."""

    def loss(kernel, stem, x):
        y = strided_conv(x, stem, stride=2)
        return jnp.sum(jnp.square(grouped_conv(y, kernel, groups=3)))

    def microbatches(kernel, stem, rows):
        return lax.map(lambda x: jax.grad(loss, (0, 1))(kernel, stem, x), rows)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(5, 2, 6), (3, 6, 6), (2, 4, 19, 6)]]
    program = jax.jit(microbatches).lower(*shapes).as_text()
    layouts = re.findall(r"dim_numbers = (.+?), window", program)
    assert len(layouts) >= 4
    assert set(layouts) == {"[b, 0, f]x[0, i, o]->[b, 0, f]"}


def two_convolutions(params, audio):
    """Rows float[B, N] -> [B, T, 6], each from itself alone."""
    x = jnp.sin(strided_conv(audio[:, :, None], params["first"], stride=2))
    return jnp.sin(strided_conv(x, params["second"], stride=2))


@jax.jit
def whole_batch(params, audio, weights):
    """All rows at once: their output, and the gradients of its weighted sum."""

    def loss(params, audio):
        y = two_convolutions(params, audio)
        return jnp.sum(weights * y), y

    gradients, y = jax.grad(loss, (0, 1), has_aux=True)(params, audio)
    return y, gradients


@pytest.mark.parametrize("at_once, rows", [(1, 1), (80, 2), (130, 3), (1000, 6)])
def test_rows_in_turn_are_those_of_the_whole_batch(at_once, rows):
    params = {"first": random(4, 1, 5), "second": random(3, 5, 6)}
    audio, weights = random(6, 40), random(6, 9, 6)
    sizes = []

    def function(params, audio):
        sizes.append(audio.shape[0])
        return two_convolutions(params, audio)

    def loss(params, audio):
        return jnp.sum(weights * row_by_row(function, params, audio, at_once=at_once))

    truth, true_gradients = whole_batch(params, audio, weights)
    found = np.asarray(
        jax.jit(lambda p, x: row_by_row(function, p, x, at_once=at_once))(params, audio)
    )
    assert min(sizes) == rows
    assert relative_error(found, truth) < 1e-6
    assert relative_error(np.roll(found, 1, 0), truth) > 1e-2
    found, truth = jax.jit(jax.grad(loss, (0, 1)))(params, audio), true_gradients
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        assert relative_error(a, b) < 2e-6


def test_rows_stay_together_off_the_cpu():
    params = {"first": random(4, 1, 5), "second": random(3, 5, 6)}
    encode = jax.jit(lambda p, x: row_by_row(two_convolutions, p, x, at_once=1))
    for platform, looped in [("cpu", True), ("cuda", False)]:
        program = export.export(encode, platforms=[platform])(params, random(6, 40))
        assert ("stablehlo.while" in program.mlir_module()) is looped
