"""Token losses: torch's formulas over real tokens alone, and what a teacher adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.objectives.cot import (
    distillation,
    last_tokens,
    token_accuracy,
    token_cross_entropy,
)

B, L, V = 3, 5, 7


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(B, L, V)).astype(np.float32) * 3
    targets = rng.integers(0, V, (B, L)).astype(np.int32)
    mask = np.arange(L) < np.array([5, 2, 0])[:, None]
    return logits, targets, mask


def reference(logits, targets, mask, smoothing=0.0):
    """torch.nn.functional.cross_entropy(label_smoothing) in float64, summed over real tokens."""
    shares = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    picked = np.take_along_axis(shares, targets[:, :, None], -1)[:, :, 0]
    losses = -(1 - smoothing) * picked - smoothing * shares.mean(-1)
    return losses[mask].sum(), mask.sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_over_the_real_tokens(answers, smoothing):
    total, count = token_cross_entropy(*answers, label_smoothing=smoothing)
    wanted = reference(*answers, smoothing)
    np.testing.assert_allclose(total, wanted[0], rtol=1e-6)
    assert count == wanted[1] == 7 and total.dtype == count.dtype == jnp.float32
    logits, targets, mask = answers
    shifted = token_cross_entropy(logits, (targets + 1) % V, mask, label_smoothing=smoothing)
    assert abs(float(shifted[0] - total)) > 0.1


def test_half_precision_logits_are_summed_in_float32(answers):
    logits, targets, mask = answers
    half = jnp.asarray(logits, jnp.bfloat16)
    total, _ = token_cross_entropy(half, targets, mask)
    wanted, _ = reference(np.asarray(half, np.float32), targets, mask)
    np.testing.assert_allclose(total, wanted, rtol=1e-6)


def test_padding_has_no_gradient(answers):
    logits, targets, mask = answers
    grads = jax.grad(lambda x: token_cross_entropy(x, targets, mask)[0])(logits)
    assert np.all(np.any(np.asarray(grads) != 0, -1) == mask)


def test_accuracy_counts_the_likeliest_tokens(answers):
    logits, targets, mask = answers
    hits, count = token_accuracy(logits, targets, mask)
    assert hits == ((logits.argmax(-1) == targets) & mask).sum() and count == 7
    assert token_accuracy(logits, logits.argmax(-1), mask)[0] == 7


def test_the_distance_to_the_teacher_is_its_divergence_and_moves_the_student_alone(answers):
    logits, _, mask = answers
    teacher = np.roll(logits, 1, -1)

    def shares(x):
        x = np.exp(x.astype(np.float64))
        return x / x.sum(-1, keepdims=True)

    wanted = (shares(teacher) * np.log(shares(teacher) / shares(logits))).sum(-1)[mask].sum()
    total, count = distillation(logits, teacher, mask)
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    assert count == 7 and abs(float(distillation(logits, logits, mask)[0])) < 1e-5
    of_student, of_teacher = jax.grad(lambda *x: distillation(*x, mask)[0], (0, 1))(logits, teacher)
    assert not np.any(of_teacher) and np.any(of_student)


def test_the_last_tokens_of_rows_of_any_length_align():
    values = np.arange(12).reshape(2, 6)
    found = last_tokens(values, np.array([6, 3]), 4)
    assert found.tolist() == [[2, 3, 4, 5], [6, 6, 7, 8]]
    logits = np.stack([values, values + 100], -1)
    assert last_tokens(logits, np.array([6, 3]), 2)[1].tolist() == [[7, 107], [8, 108]]
