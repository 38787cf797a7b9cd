import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.objectives.classification import cross_entropy

LOGITS = jax.random.normal(jax.random.key(0), (5, 4)) * 2
LABELS = np.array([2, 0, -1, 3, 3])
WEIGHTS = np.array([0.5, 1.0, 2.0, 3.0])


def by_hand(logits, labels, smoothing=0.0, weights=(1, 1, 1, 1)):
    """torch.nn.functional.cross_entropy's definition with label smoothing and weights, summed."""
    logits = np.asarray(logits, np.float64)
    total = count = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label < 0:
            continue
        log_shares = row - np.log(np.exp(row).sum())
        total -= (1 - smoothing) * weights[label] * log_shares[label]
        total -= smoothing / len(row) * (np.array(weights) * log_shares).sum()
        count += weights[label]
    return total, count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_equals_the_formula(smoothing, weights):
    found = cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, class_weights=weights)
    wanted = by_hand(LOGITS, LABELS, smoothing, (1, 1, 1, 1) if weights is None else weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    moved = cross_entropy(
        LOGITS, np.where(LABELS < 0, -1, (LABELS + 1) % 4), label_smoothing=smoothing,
        class_weights=weights,
    )  # fmt: skip
    assert abs(float(moved[0]) - wanted[0]) > 1e-2


def test_values_torch_gave():
    """torch.nn.CrossEntropyLoss(weight, label_smoothing=0.2), reduction mean, torch 2.13.0."""
    logits = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    value, count = cross_entropy(
        logits, jnp.array([2, 1]), label_smoothing=0.2, class_weights=jnp.array([1.0, 2.0, 4.0])
    )
    assert float(value / count) == pytest.approx(0.8977, abs=5e-5)


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    value, count = cross_entropy(jnp.zeros((3, 7)), jnp.array([0, 3, 6]), label_smoothing=0.3)
    np.testing.assert_allclose(value / count, np.log(7), rtol=1e-6)


def test_gradient_is_share_minus_target_and_nothing_for_unlabelled_rows():
    gradient = jax.grad(lambda x: cross_entropy(x, LABELS)[0])(LOGITS)
    wanted = jax.nn.softmax(LOGITS) - jax.nn.one_hot(LABELS, 4)
    np.testing.assert_allclose(gradient[LABELS >= 0], wanted[LABELS >= 0], atol=1e-6)
    assert (gradient[2] == 0).all()


def test_a_class_that_cannot_be_costs_nothing():
    logits = LOGITS.at[:, 1].set(-jnp.inf)
    value, count = cross_entropy(logits, LABELS)
    assert np.isfinite(value) and float(count) == 4
    gradient = jax.grad(lambda x: cross_entropy(x, LABELS)[0])(logits)
    assert np.isfinite(gradient).all()


def test_no_labels_give_zero():
    value, count = cross_entropy(LOGITS, np.full(5, -1), class_weights=WEIGHTS)
    assert float(value) == float(count) == 0
