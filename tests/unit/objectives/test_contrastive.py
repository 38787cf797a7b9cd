import jax
import numpy as np
import pytest

from c2ser_jax.objectives.contrastive import supervised_contrastive

# ((loss, anchors), gradient), one program per shape.
evaluate = jax.jit(jax.value_and_grad(supervised_contrastive, has_aux=True))


def by_hand(embeddings, labels, temperature):
    """Equation 2 of Khosla et al. 2020, written out."""
    z = np.asarray(embeddings, np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total, anchors = 0.0, 0
    rows = [i for i, label in enumerate(labels) if label >= 0]
    for i in rows:
        others = [a for a in rows if a != i]
        partners = [p for p in others if labels[p] == labels[i]]
        if not partners:
            continue
        denominator = sum(np.exp(z[i] @ z[a] / temperature) for a in others)
        total -= np.mean(
            [np.log(np.exp(z[i] @ z[p] / temperature) / denominator) for p in partners]
        )
        anchors += 1
    return total, anchors


EMBEDDINGS = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
LABELS = np.array([0, 1, -1, 0, 2, 1, 1])


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_loss_equals_the_formula(temperature):
    (value, anchors), _ = evaluate(EMBEDDINGS, LABELS, temperature=temperature)
    wanted, count = by_hand(EMBEDDINGS, LABELS, temperature)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert float(anchors) == count == 5
    (shifted, _), _ = evaluate(EMBEDDINGS, np.roll(LABELS, 1), temperature=temperature)
    assert abs(float(shifted) - wanted) > 1e-3


def test_two_partners_alone_give_a_closed_form():
    rows = np.array([[1, 0, 0, 0], [2, 0, 0, 0], [0, 3, 0, 0]], np.float32)
    (value, anchors), _ = evaluate(rows, np.array([4, 4, 9]), temperature=0.5)
    np.testing.assert_allclose(value, 2 * np.log(1 + np.exp(-2.0)), rtol=1e-6)
    assert float(anchors) == 2


def test_unlabelled_rows_change_nothing():
    labelled = LABELS >= 0
    all_rows, gradient = evaluate(EMBEDDINGS, LABELS, temperature=0.2)
    without, _ = evaluate(EMBEDDINGS[labelled], LABELS[labelled], temperature=0.2)
    np.testing.assert_allclose(all_rows, without, rtol=1e-6)
    gradient = np.asarray(gradient)
    assert (gradient[2] == 0).all() and (gradient[4] != 0).any()


def test_length_of_an_embedding_does_not_matter():
    scale = np.arange(1.0, 8.0, dtype=np.float32)[:, None]
    one, _ = evaluate(EMBEDDINGS, LABELS, temperature=0.3)
    other, _ = evaluate(EMBEDDINGS * scale, LABELS, temperature=0.3)
    np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 1, 2], [0, -1, -1]])
def test_no_partners_give_zero_and_a_finite_gradient(labels):
    (value, anchors), gradient = evaluate(EMBEDDINGS[:3], np.array(labels), temperature=0.07)
    assert float(value) == float(anchors) == 0
    assert (np.asarray(gradient) == 0).all()


def test_a_zero_row_has_a_finite_gradient():
    x = np.where(np.arange(7)[:, None] == 1, np.float32(0), EMBEDDINGS)
    _, gradient = evaluate(x, LABELS, temperature=0.07)
    assert np.isfinite(gradient).all()


def test_gradient_equals_finite_differences():
    x = np.asarray(EMBEDDINGS, np.float64)
    gradient = np.asarray(evaluate(EMBEDDINGS, LABELS, temperature=0.5)[1])
    for place in ((0, 0), (3, 2), (6, 3)):
        step = np.zeros_like(x)
        step[place] = 1e-5
        slope = (by_hand(x + step, LABELS, 0.5)[0] - by_hand(x - step, LABELS, 0.5)[0]) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-5)
