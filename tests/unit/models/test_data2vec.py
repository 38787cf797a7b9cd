import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.data2vec import (
    TEACHER_PATHS,
    Data2Vec,
    Data2VecConfig,
    clone,
    draw_masks,
    frame_targets,
    gather_kept,
    scatter_kept,
    utterance_prediction,
    utterance_targets,
)
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.objectives.data2vec import frame_regression, utterance_regression
from c2ser_jax.training.state import split_params
from tests.unit.models.generic import generic_params

ENCODER = Emotion2VecConfig(
    width=12, depth=3, prenet_depth=1, heads=3, mlp_ratio=2.0, extra_tokens=2,
    conv_layers=(ConvLayer(5, 10, 5), ConvLayer(7, 8, 4)), position_width=6, position_depth=2,
    position_groups=2, dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0, prenet_dropout=0.0,
    layer_drop=0.0, prenet_layer_drop=0.0,
)  # fmt: skip
CONFIG = Data2VecConfig(
    clone_batch=2, mask_length=2, mask_noise_std=0.0, average_top_k_layers=2, decoder_width=8,
    decoder_depth=2, decoder_kernel=3, decoder_groups=2, decoder_input_dropout=0.0,
)  # fmt: skip
LENGTHS = np.array([900, 520, 700, 0], np.int32)
FRAMES = ENCODER.frames(LENGTHS)


def audio(samples=960):
    rows = np.random.default_rng(0).standard_normal((4, samples)).astype(np.float32)
    return np.where(np.arange(samples) < LENGTHS[:, None], rows, 0)


@functools.cache
def masks():
    def draw(key, frames):
        keys = jax.random.split(key, 8)
        return draw_masks(keys, clone(frames, 2), int(ENCODER.frames(960)), CONFIG)

    return np.asarray(jax.jit(draw)(jax.random.key(5), FRAMES))


@functools.cache
def compiled(config, kept_frames=None):
    """The student alone."""

    def run(student, audio, lengths, masked):
        return Data2Vec(ENCODER, config).apply(
            {"params": student}, audio, lengths, masked, train=True, kept_frames=kept_frames,
            rngs={"noise": jax.random.key(9)}, return_layers=True,
        )  # fmt: skip

    return jax.jit(run)


@jax.jit
def teach(teacher, local_features, frame_mask):
    """What the teacher of every config makes of the student's local features."""
    return Data2Vec(ENCODER, CONFIG).apply(
        {"params": teacher}, local_features, frame_mask, method="teacher"
    )


@functools.partial(jax.jit, static_argnames="config")
def compare(config, out, layers, lengths):
    frames = frame_targets(layers, out.frame_mask, norm=config.target_norm)
    whole = utterance_targets(
        layers, out.frame_mask, kind=config.utterance_target, norm=config.target_norm
    )
    C = out.masked.shape[0] // len(lengths)
    return {
        "frame": frame_regression(out.predictions, clone(frames, C), out.masked),
        "utterance": utterance_regression(out.utterance, clone(whole, C), clone(lengths > 0, C)),
    }


def pretrain(config, audio, lengths, masked):
    """What the student says, and how far it is from its teacher, on the host."""
    student, teacher = weights()
    out = compiled(config)(student, audio, lengths, masked)
    layers = teach(teacher, out.local_features, out.frame_mask)
    return jax.tree.map(np.asarray, (out, compare(config, out, layers, lengths)))


@functools.cache
def weights():
    model = Data2Vec(ENCODER, CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0), audio(), LENGTHS, masks())
    params = generic_params(shapes["params"])
    return params, split_params(params, TEACHER_PATHS)[0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (dict(clone_batch=0), "clone_batch is 0"),
        (dict(mask_prob=1.0), "give 0 < p < 1"),
        (dict(decoder_kernel=4), "must be odd"),
        (dict(decoder_width=7), "not a multiple of decoder_groups"),
        (dict(target_norm="batch"), "use one of instance, layer"),
        (dict(utterance_prediction="chunk"), "last_token, mean_of_tokens"),
        (dict(decoder_input_dropout=1.5), "must lie in"),
    ],
)
def test_impossible_configs_are_refused_in_a_sentence(values, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(CONFIG, **values)


def test_a_width_the_decoder_cannot_group_is_refused():
    model = Data2Vec(ENCODER, dataclasses.replace(CONFIG, decoder_width=10, decoder_groups=5))
    with pytest.raises(UserError, match="width 12 is not a multiple of decoder_groups 5"):
        jax.eval_shape(model.init, jax.random.key(0), audio(), LENGTHS, masks())


def test_the_teacher_lacks_local_features_and_decoder():
    student, teacher = weights()
    assert set(student) == {"encoder", "decoder"} and set(teacher) == {"encoder"}
    missing = set(student["encoder"]) - set(teacher["encoder"])
    assert missing == {"local_encoder", "project_features"}
    assert set(student["decoder"]) == {"conv_0", "conv_1", "proj"}
    assert student["decoder"]["conv_0"]["kernel"].shape == (3, 6, 8)
    assert student["decoder"]["conv_1"]["kernel"].shape == (3, 4, 8)


@pytest.mark.parametrize(
    "changes",
    [{}, dict(target_norm="layer", utterance_target="published", pooled_pass="unmasked",
              utterance_prediction="mean_of_tokens")],
)  # fmt: skip
def test_row_terms_of_a_padded_batch_equal_those_of_its_rows(changes):
    config = dataclasses.replace(CONFIG, **changes)
    hidden = masks()
    together, terms = pretrain(config, audio(), LENGTHS, hidden)
    total = {"frame": np.zeros(2), "utterance": np.zeros(2)}
    for rows, longest in ([1], LENGTHS[1]), ([2, 3, 0, 3], 960):  # the fourth is padding
        frames = int(ENCODER.frames(longest))
        clones = [2 * row + copy for row in rows for copy in (0, 1)]
        alone, parts = pretrain(
            config, audio()[rows, :longest], LENGTHS[rows], hidden[clones, :frames]
        )
        for name, part in parts.items():
            total[name] += [float(part[0]), float(part[1])]
        near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
        near(together.pooled[rows], alone.pooled)
        near(together.utterance[clones], alone.utterance)
        real = np.repeat(alone.frame_mask, 2, 0)
        near(together.predictions[clones, :frames][real], alone.predictions[real])
    for name, (value, count) in terms.items():
        assert float(count) == total[name][1] > 0
        np.testing.assert_allclose(value, total[name][0], rtol=1e-5)


def test_padding_rows_and_padding_frames_are_never_masked():
    out, terms = pretrain(CONFIG, audio(), LENGTHS, np.ones_like(masks()))
    counts = np.asarray(out.masked).sum(1)
    assert counts.tolist() == np.repeat(FRAMES, 2).tolist()
    assert float(terms["frame"][1]) == counts.sum()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, terms)))


def test_the_samplers_room_holds_every_kept_frame():
    hidden = masks()
    out = compiled(CONFIG)(weights()[0], audio(), LENGTHS, hidden)
    roomy = compiled(CONFIG, hidden.shape[1])(weights()[0], audio(), LENGTHS, hidden)
    assert out.layers["kept_indices"].shape[1] < hidden.shape[1]
    np.testing.assert_allclose(out.predictions, roomy.predictions, atol=1e-5)
    np.testing.assert_allclose(out.pooled, roomy.pooled, atol=1e-5)


def test_masked_frames_do_not_reach_the_student_but_the_positions_around_do():
    hidden = masks()
    moved = np.concatenate([np.roll(hidden[:2], 1, 1), hidden[2:]])
    first, other = (
        np.asarray(compiled(CONFIG)(weights()[0], audio(), LENGTHS, masked).predictions)
        for masked in (hidden, moved)
    )
    assert np.abs(first[:2] - other[:2]).max() > 1e-3
    np.testing.assert_array_equal(first[2:], other[2:])


def test_noise_fills_masked_frames_only():
    config = dataclasses.replace(CONFIG, mask_noise_std=0.5)
    out = compiled(config)(weights()[0], audio(), LENGTHS, masks())
    quiet = compiled(CONFIG)(weights()[0], audio(), LENGTHS, masks())
    filled = np.asarray(out.layers["decoder_input"])
    masked = np.asarray(out.masked)
    np.testing.assert_array_equal(
        filled[~masked], np.asarray(quiet.layers["decoder_input"])[~masked]
    )
    assert abs(filled[masked].std() - 0.5) < 0.05
    assert (np.asarray(quiet.layers["decoder_input"])[masked] == 0).all()


def test_gathering_and_scattering_are_inverse():
    x = np.arange(1.0, 13.0, dtype=np.float32).reshape(2, 6, 1)
    kept = np.array([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], bool)
    front, indices, mask = jax.jit(gather_kept, static_argnums=2)(x, kept, 3)
    front, mask = np.asarray(front), np.asarray(mask)
    np.testing.assert_array_equal(front[:, :, 0] * mask, [[1, 3, 4], [12, 0, 0]])
    np.testing.assert_array_equal(indices[0], [0, 2, 3])
    back = jax.jit(scatter_kept)(front, kept, ~kept, -np.ones((2, 6, 1), np.float32))
    np.testing.assert_array_equal(back, np.where(kept[:, :, None], x, -1))


def test_clones_of_an_utterance_are_adjacent():
    np.testing.assert_array_equal(clone(np.array([3, 8]), 3), [3, 3, 3, 8, 8, 8])


def test_instance_targets_ignore_padding_and_are_normal_over_time():
    results = np.random.default_rng(0).normal(7, 4, (2, 3, 9, 5)).astype(np.float32)
    mask = np.arange(9) < np.array([[9], [6], [0]])
    targets = jax.jit(functools.partial(frame_targets, norm="instance"))
    found = np.asarray(targets(results, mask))
    alone = targets(results[:, 1:2, :6], mask[1:2, :6])
    np.testing.assert_allclose(found[1, :6], alone[0], atol=1e-6)
    assert (found[1, 6:] == 0).all() and (found[2] == 0).all()
    one = np.asarray(targets(results[:1], mask))
    np.testing.assert_allclose(one[0].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(one[0].std(0), 1, atol=1e-4)


def test_targets_carry_no_gradient_into_student_or_teacher():
    student, teacher = weights()
    model = Data2Vec(ENCODER, CONFIG)

    def total(teacher, local):
        return model.apply(
            {"params": teacher}, local, np.ones((1, 9), bool), method="teacher"
        ).sum()

    grads = jax.jit(jax.grad(total, (0, 1)))(teacher, np.ones((1, 9, 12), np.float32))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_utterance_prediction_is_the_last_token_or_the_mean():
    tokens = jnp.arange(6.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(utterance_prediction(tokens, "last_token"), [[4, 5]])
    np.testing.assert_array_equal(utterance_prediction(tokens, "mean_of_tokens"), [[2, 3]])
