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
    packed_logits,
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
    mask = length_mask(LENGTHS, features.shape[1])
    boxed = jax.jit(head.init)(jax.random.key(1), features, mask)
    return nn.meta.unbox(boxed)["params"]


def padded_logits(params, features, mask):
    hidden, classes = params["post_net"]["kernel"].shape
    return jax.jit(DownstreamHead(hidden, classes).apply)({"params": params}, features, mask)


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


@pytest.mark.parametrize("chunk", [4, 100])
def test_packed_frames_give_the_padded_logits_and_gradients(params, features, chunk):
    mask = length_mask(LENGTHS, features.shape[1])
    frames, rows = packed(features)
    frames = np.pad(frames, ((0, 6), (0, 0)), constant_values=7.0)
    rows = np.pad(rows, (0, 6), constant_values=len(LENGTHS))

    def loss(p, rows):
        if rows is None:
            logits = jnp.asarray(padded_logits(p, features, mask))
        else:
            logits = packed_logits(p, frames, rows, len(LENGTHS), chunk=chunk)
        return jnp.sum(jnp.sin(logits)), logits

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, expected), grads = both(params, None)
    (_, logits), packed_grads = both(params, rows)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed_grads, grads)
    (_, wrong), _ = both(params, np.roll(rows, 1))
    assert np.abs(np.asarray(wrong) - np.asarray(logits)).max() > 1e-3


def test_an_utterance_without_frames_is_finite(params, features):
    mask = length_mask([0, 3, 5], features.shape[1])
    assert np.isfinite(padded_logits(params, features, mask)).all()
    np.testing.assert_array_equal(masked_mean(jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool)), 0)
    frames, rows = packed(features)
    logits = packed_logits(params, frames, rows, len(LENGTHS) + 1)
    np.testing.assert_allclose(logits[-1], params["post_net"]["bias"], atol=1e-7)


def test_switched_off_units_make_the_wide_head_a_narrow_one(params, features):
    rng, extra = np.random.default_rng(3), 5
    pre, post = params["pre_net"], params["post_net"]
    more = rng.standard_normal((WIDTH, extra)), rng.standard_normal((extra, CLASSES))
    wide = {
        "pre_net": {
            "kernel": np.concatenate([pre["kernel"], more[0]], axis=1).astype(np.float32),
            "bias": np.concatenate([pre["bias"], np.ones(extra)]).astype(np.float32),
        },
        "post_net": {
            "kernel": np.concatenate([post["kernel"], more[1]]).astype(np.float32),
            "bias": post["bias"],
        },
    }
    units = np.repeat([1.0, 0.0], [HIDDEN, extra]).astype(np.float32)
    frames, rows = packed(features)
    expected = packed_logits(params, frames, rows, len(LENGTHS))
    got = packed_logits(wide, frames, rows, len(LENGTHS), units=units)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(packed_logits(wide, frames, rows, len(LENGTHS)) - expected).max() > 1e-2


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
    mask = length_mask(LENGTHS, features.shape[1])
    init = DownstreamHead(HIDDEN, CLASSES).init
    boxed = jax.eval_shape(init, jax.random.key(0), features, mask)["params"]
    assert boxed["pre_net"]["kernel"].names == ("embed_in", "mlp")
    assert boxed["post_net"]["kernel"].names == ("mlp", "classes")
    assert boxed["post_net"]["bias"].names == ("classes",)
