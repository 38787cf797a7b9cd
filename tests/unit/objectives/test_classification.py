import jax
import numpy as np
import pytest

from c2ser_jax.objectives import classification

# ((loss, count), gradient)
evaluate = jax.jit(
    jax.value_and_grad(classification.cross_entropy, has_aux=True),
    static_argnames="label_smoothing",
)
LOGITS = np.random.default_rng(0).normal(0, 2, (5, 4)).astype(np.float32)
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
    options = dict(label_smoothing=smoothing, class_weights=weights)
    found, _ = evaluate(LOGITS, LABELS, **options)
    wanted = by_hand(LOGITS, LABELS, smoothing, (1, 1, 1, 1) if weights is None else weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    moved, _ = evaluate(LOGITS, np.where(LABELS < 0, -1, (LABELS + 1) % 4), **options)
    assert abs(float(moved[0]) - wanted[0]) > 1e-2


def test_values_torch_gave():
    """torch.nn.CrossEntropyLoss(weight, label_smoothing=0.2), reduction mean, torch 2.13.0."""
    logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], np.float32)
    (value, count), _ = evaluate(
        logits, np.array([2, 1]), label_smoothing=0.2, class_weights=np.array([1.0, 2.0, 4.0])
    )
    assert float(value / count) == pytest.approx(0.8977, abs=5e-5)


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    logits = np.zeros((3, 7), np.float32)
    (value, count), _ = evaluate(logits, np.array([0, 3, 6]), label_smoothing=0.3)
    np.testing.assert_allclose(value / count, np.log(7), rtol=1e-6)


def test_gradient_is_share_minus_target_and_nothing_for_unlabelled_rows():
    gradient = np.asarray(evaluate(LOGITS, LABELS)[1])
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    wanted = shares - (LABELS[:, None] == np.arange(4))
    np.testing.assert_allclose(gradient[LABELS >= 0], wanted[LABELS >= 0], atol=1e-6)
    assert (gradient[2] == 0).all()


def test_a_class_that_cannot_be_costs_nothing():
    logits = np.where(np.arange(4) == 1, np.float32(-np.inf), LOGITS)
    (value, count), gradient = evaluate(logits, LABELS)
    assert np.isfinite(value) and float(count) == 4
    assert np.isfinite(gradient).all()


def test_no_labels_give_zero():
    (value, count), _ = evaluate(LOGITS, np.full(5, -1), class_weights=WEIGHTS)
    assert float(value) == float(count) == 0
