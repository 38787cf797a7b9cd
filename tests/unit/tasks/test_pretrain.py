"""The pretraining task: rows count once each, padding and labels act only where they should."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.tasks.pretrain import Pretrain, PretrainConfig
from c2ser_jax.training.state import split_params
from tests.unit.models.generic import generic_params

ENCODER = Emotion2VecConfig(
    width=24, depth=2, prenet_depth=1, heads=3, mlp_ratio=2.0, extra_tokens=4,
    conv_layers=(ConvLayer(6, 25, 20), ConvLayer(5, 17, 16)),
    position_width=6, position_depth=2, position_groups=4,
    dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0, prenet_dropout=0.0,
    layer_drop=0.0, prenet_layer_drop=0.0,
)  # fmt: skip
CONFIG = PretrainConfig(
    data2vec=Data2VecConfig(
        clone_batch=2, average_top_k_layers=2, mask_noise_std=0.0, decoder_width=12,
        decoder_depth=2, decoder_kernel=3, decoder_groups=2, decoder_input_dropout=0.0,
    )
)  # fmt: skip
SAMPLES = (9000, 5200, 7100)


def make_batch(rows=(0, 1, 2), longest=9600, labels=(0, 1, 0)):
    rng = np.random.default_rng(3)
    waves = [rng.normal(size=n).astype(np.float32) for n in SAMPLES]
    frames = ENCODER.frames(longest)
    masked = rng.random((3, 2, ENCODER.frames(9600))) < 0.5
    batch = {
        "audio": np.zeros((len(rows), longest), np.float32),
        "audio_samples": np.array([SAMPLES[r] for r in rows], np.int32),
        "label": np.array([labels[r] for r in rows], np.int32),
        "masked": masked[list(rows), :, :frames],
    }
    for place, row in enumerate(rows):
        batch["audio"][place, : SAMPLES[row]] = waves[row]
    return batch


TASK = Pretrain(CONFIG, ENCODER)


@functools.cache
def start():
    params = generic_params(jax.eval_shape(TASK.init, jax.random.key(1), make_batch()))
    return params, split_params(params, TASK.ema_paths or "")[0]


@jax.jit
def loss(student, teacher, batch, key):
    return TASK.loss(student, {}, teacher, batch, key, 0)


def run(batch, key=7):
    return loss(*start(), batch, jax.random.key(key))


def test_row_terms_of_a_batch_are_the_sums_of_its_rows():
    whole, _ = run(make_batch())
    parts = [run(make_batch(rows=(1,), longest=5330))[0], run(make_batch(rows=(0, 2)))[0]]
    for term in ("frame", "utterance"):
        total, count = (sum(np.float64(part[term][i]) for part in parts) for i in (0, 1))
        assert count == whole[term][1]
        np.testing.assert_allclose(whole[term][0], total, rtol=1e-5)


def test_a_shifted_mask_changes_the_frame_term():
    batch = make_batch()
    shifted = {**batch, "masked": np.roll(batch["masked"], 1, -1)}
    assert abs(float(run(batch)[0]["frame"][0] - run(shifted)[0]["frame"][0])) > 1e-3


def test_padding_rows_add_nothing():
    batch = make_batch(rows=(0, 2))
    padded = {k: np.concatenate([v, np.zeros_like(v[:1])]) for k, v in batch.items()}
    for term, (total, count) in run(padded)[0].items():
        np.testing.assert_allclose(total, run(batch)[0][term][0], rtol=1e-5)
        assert count == run(batch)[0][term][1] > 0


def test_only_labelled_rows_with_a_partner_are_anchors():
    assert float(run(make_batch())[0]["category"][1]) == 2
    assert float(run(make_batch(labels=(0, -1, 1)))[0]["category"][1]) == 0
    frames = [run(make_batch(labels=labels))[0]["frame"][0] for labels in [(0, 1, 0), (-1,) * 3]]
    assert frames[0] == frames[1]


def test_drawn_masks_follow_the_key_and_the_real_length():
    batch = make_batch()
    del batch["masked"]
    terms, metrics = run(batch)
    again, _ = run(batch)
    other, _ = run(batch, key=8)
    assert terms["frame"] == again["frame"] and terms["frame"][0] != other["frame"][0]
    share = metrics["masked_share"][0] / metrics["masked_share"][1]
    assert 0.4 < float(share) <= 0.5
    assert float(metrics["masked_share"][1]) == 2 * sum(ENCODER.frames(n) for n in SAMPLES)


def test_the_teacher_gets_no_gradient_and_the_student_does():
    def total(student, teacher):
        terms, _ = loss(student, teacher, make_batch(), jax.random.key(0))
        return sum(TASK.weights[name] * value / count for name, (value, count) in terms.items())

    grads = jax.jit(jax.grad(total, (0, 1)))(*start())
    of_student, of_teacher = jax.tree.map(np.asarray, grads)
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_teacher))
    assert np.abs(of_student["encoder"]["local_encoder"]["conv_0"]["kernel"]).max() > 0
    assert np.abs(of_student["decoder"]["proj"]["kernel"]).max() > 0


@pytest.mark.parametrize("field, value", [("category_weight", -1.0), ("temperature", 0.0)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(Exception, match=field):
        dataclasses.replace(CONFIG, **{field: value})
