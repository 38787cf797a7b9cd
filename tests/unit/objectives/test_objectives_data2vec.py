import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.objectives.data2vec import (
    frame_regression,
    masked_deviation,
    published_sums,
    utterance_regression,
)

PREDICTIONS = jnp.array([[[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
TARGETS = jnp.array([[[1.0, 0.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
MASKED = jnp.array([[True, True, False]])


def test_frame_term_is_the_squared_error_over_the_root_of_the_width():
    value, count = frame_regression(PREDICTIONS, TARGETS, MASKED)
    assert float(count) == 2
    np.testing.assert_allclose(value, ((4 + 9) + 16) / 2)


def test_frame_gradient_is_zero_where_nothing_is_masked():
    gradient = jax.grad(lambda p: frame_regression(p, TARGETS, MASKED)[0])(PREDICTIONS)
    np.testing.assert_allclose(gradient[0, 0], [0, 2, 0, 3])
    assert (gradient[0, 2] == 0).all()


def test_half_precision_inputs_are_compared_in_float32():
    value, _ = frame_regression(
        jnp.full((1, 1, 4), 3.0, jnp.bfloat16), jnp.full((1, 1, 4), 1 / 3), jnp.ones((1, 1), bool)
    )
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 4 * (3 - 1 / 3) ** 2 / 2, rtol=1e-6)


def test_utterance_term_leaves_absent_rows_out():
    value, count = utterance_regression(PREDICTIONS[0], TARGETS[0], jnp.array([True, False, True]))
    assert float(count) == 2
    np.testing.assert_allclose(value, (13 + 4 * 81) / 2)


def test_published_sums_multiply_the_utterance_sum_by_the_sample_size():
    found = published_sums((6.0, 4.0), (2.5, 3.0), cls_weight=2.0)
    assert [float(x) for x in found] == [6.0, 20.0, 4.0]


def test_nothing_masked_gives_zero_sums_and_counts():
    value, count = frame_regression(PREDICTIONS, TARGETS, MASKED & False)
    assert float(value) == float(count) == 0
    assert np.isfinite(masked_deviation(PREDICTIONS, MASKED & False))


def test_deviation_is_the_mean_unbiased_one_over_masked_frames():
    x = jax.random.normal(jax.random.key(0), (3, 7, 5)) * 2 + 1
    mask = jax.random.bernoulli(jax.random.key(1), 0.6, (3, 7))
    rows = np.asarray(x)[np.asarray(mask)]
    wanted = np.sqrt(rows.var(0, ddof=1) + 1e-6).mean()
    np.testing.assert_allclose(masked_deviation(x, mask), wanted, rtol=1e-5)
    assert float(masked_deviation(jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool))) < 2e-3
