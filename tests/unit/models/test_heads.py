import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from c2ser_jax.models.heads import (
    DownstreamHead,
    length_mask,
    masked_mean,
    nonzero_sum_mask,
    packed_mean,
)

LENGTHS = [7, 3, 5]
WIDTH, HIDDEN, CLASSES = 6, 11, 4


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return rng.standard_normal((len(LENGTHS), max(LENGTHS), WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def params(features):
    head = DownstreamHead(HIDDEN, CLASSES)
    boxed = head.init(jax.random.key(1), features, length_mask(LENGTHS, features.shape[1]))
    return nn.meta.unbox(boxed)["params"]


def padded_logits(params, features, mask, **kwargs):
    hidden, classes = params["post_net"]["kernel"].shape
    return DownstreamHead(hidden, classes).apply({"params": params}, features, mask, **kwargs)


def packed(features):
    frames = np.concatenate([features[i, :n] for i, n in enumerate(LENGTHS)])
    return frames, np.repeat(np.arange(len(LENGTHS)), LENGTHS)


def test_logits_equal_the_formula_written_out(params, features):
    logits = padded_logits(params, features, length_mask(LENGTHS, features.shape[1]))
    for i, n in enumerate(LENGTHS):
        hidden = features[i, :n] @ params["pre_net"]["kernel"] + params["pre_net"]["bias"]
        pooled = np.maximum(hidden, 0).mean(0)
        expected = pooled @ params["post_net"]["kernel"] + params["post_net"]["bias"]
        np.testing.assert_allclose(logits[i], expected, atol=1e-6)


def test_padding_does_not_change_logits_but_a_shifted_mask_does(params, features):
    mask = np.asarray(length_mask(LENGTHS, features.shape[1]))
    logits = padded_logits(params, features, mask)
    noisy = np.where(mask[..., None], features, 99.0)
    longer = np.pad(noisy, ((0, 0), (0, 4), (0, 0)), constant_values=-5.0)
    longer_mask = length_mask(LENGTHS, longer.shape[1])
    np.testing.assert_allclose(padded_logits(params, longer, longer_mask), logits, atol=1e-6)
    shifted = padded_logits(params, features, np.roll(mask, 1, axis=1))
    assert np.abs(shifted - logits).max() > 1e-3


def test_packed_frames_give_the_padded_logits_and_gradients(params, features):
    mask = length_mask(LENGTHS, features.shape[1])
    frames, rows = packed(features)
    frames = np.pad(frames, ((0, 6), (0, 0)), constant_values=7.0)
    rows = np.pad(rows, (0, 6), constant_values=len(LENGTHS))
    head = DownstreamHead(HIDDEN, CLASSES)

    def loss(p, packing):
        if packing:
            logits = head.apply({"params": p}, frames, rows=rows, count=len(LENGTHS))
        else:
            logits = head.apply({"params": p}, features, mask)
        return jnp.sum(jnp.sin(jnp.asarray(logits))), logits

    (_, expected), grads = jax.value_and_grad(loss, has_aux=True)(params, False)
    (_, logits), packed_grads = jax.value_and_grad(loss, has_aux=True)(params, True)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed_grads, grads)
    wrong = head.apply({"params": params}, frames, rows=np.roll(rows, 1), count=len(LENGTHS))
    assert np.abs(np.asarray(wrong) - np.asarray(logits)).max() > 1e-3


def test_an_utterance_without_frames_is_finite(params, features):
    mask = length_mask([0, 3, 5], features.shape[1])
    assert np.isfinite(padded_logits(params, features, mask)).all()
    np.testing.assert_array_equal(masked_mean(jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool)), 0)
    np.testing.assert_array_equal(packed_mean(jnp.ones((3, 2)), jnp.full(3, 2), 2), 0)


def test_switched_off_units_make_the_wide_head_a_narrow_one(params, features):
    mask = length_mask(LENGTHS, features.shape[1])
    narrow = jax.tree.map(np.asarray, params)
    rng = np.random.default_rng(3)
    extra = 5
    wide = {
        "pre_net": {
            "kernel": np.concatenate(
                [narrow["pre_net"]["kernel"], rng.standard_normal((WIDTH, extra))], axis=1
            ),
            "bias": np.concatenate([narrow["pre_net"]["bias"], np.ones(extra)]),
        },
        "post_net": {
            "kernel": np.concatenate(
                [narrow["post_net"]["kernel"], rng.standard_normal((extra, CLASSES))]
            ),
            "bias": narrow["post_net"]["bias"],
        },
    }
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), wide)
    units = np.repeat([1.0, 0.0], [HIDDEN, extra]).astype(np.float32)
    expected = padded_logits(narrow, features, mask)
    np.testing.assert_allclose(
        padded_logits(wide, features, mask, units=units), expected, atol=1e-6
    )
    assert np.abs(padded_logits(wide, features, mask) - expected).max() > 1e-2


def test_published_mask_loses_a_frame_that_sums_to_zero(features):
    frames = features.copy()
    frames[0, 2] = 0
    mask = np.asarray(nonzero_sum_mask(frames))
    assert not mask[0, 2] and mask.sum() == mask.size - 1


def test_weights_start_as_torch_linear_does(params):
    assert np.abs(params["pre_net"]["kernel"]).max() <= WIDTH**-0.5
    assert np.abs(params["post_net"]["kernel"]).max() <= HIDDEN**-0.5
    assert np.abs(params["pre_net"]["kernel"]).max() > 0.8 * WIDTH**-0.5
    assert np.abs(params["pre_net"]["bias"]).max() > 0


def test_parameters_carry_logical_axis_names(features):
    boxed = DownstreamHead(HIDDEN, CLASSES).init(
        jax.random.key(0), features, length_mask(LENGTHS, features.shape[1])
    )["params"]
    assert boxed["pre_net"]["kernel"].names == ("embed_in", "mlp")
    assert boxed["post_net"]["kernel"].names == ("mlp", "classes")
    assert boxed["post_net"]["bias"].names == ("classes",)
