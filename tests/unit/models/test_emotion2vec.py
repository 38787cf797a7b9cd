import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2Vec, Emotion2VecConfig
from c2ser_jax.models.emotion2vec_config import Emotion2VecConfig as SameConfig
from c2ser_jax.parallel.rules import RULES
from tests.unit.models.generic import generic_params

CFG = Emotion2VecConfig(
    width=12, depth=3, prenet_depth=2, heads=3, mlp_ratio=2.0, extra_tokens=2,
    conv_layers=(ConvLayer(5, 10, 5), ConvLayer(7, 8, 4)), position_width=6, position_depth=2,
    position_groups=2, normalize_waveform=False,
)  # fmt: skip
AUDIO = np.random.default_rng(0).standard_normal((2, 700)).astype(np.float32)
SAMPLES = np.array([700, 420], np.int32)
QUIET = dict(dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0, prenet_dropout=0.0,
             layer_drop=0.0, prenet_layer_drop=0.0)  # fmt: skip
FRAMES = np.random.default_rng(1).standard_normal((2, CFG.frames(700), 12)).astype(np.float32)


@functools.cache
def boxes(cfg):
    """Names and shapes of all parameters."""
    return jax.eval_shape(Emotion2Vec(cfg).init, jax.random.key(0), AUDIO, SAMPLES)["params"]


def initial(cfg):
    return generic_params({"params": boxes(cfg)})


def encode(cfg, variables, audio=AUDIO, samples=SAMPLES, seed=None, statistics=None, hidden=None,
           **options):  # fmt: skip
    """The encoder's output; a seed means training."""
    key = None if seed is None else jax.random.key(seed)
    arrays = {"audio_statistics": statistics, "hidden": hidden}
    return compiled(cfg, **options)(variables, audio, samples, key, arrays)


@functools.cache
def compiled(cfg, **options):
    def run(variables, audio, samples, key, arrays):
        train = {} if key is None else dict(train=True, rngs={"dropout": key})
        return Emotion2Vec(cfg).apply(variables, audio, samples, **arrays, **train, **options)

    return jax.jit(run)


def contextualize(cfg, variables, seed=None, collect=()):
    """Tokens, frames and intermediates of the part behind the positions; a seed means training."""
    key = None if seed is None else jax.random.key(seed)
    return compiled_context(cfg, collect)(variables, FRAMES, key)


@functools.cache
def compiled_context(cfg, collect=()):
    def run(variables, frames, key):
        train = {} if key is None else dict(train=True, rngs={"dropout": key})
        mask = jnp.arange(frames.shape[1]) < CFG.frames(SAMPLES)[:, None]
        return Emotion2Vec(cfg).apply(
            variables, frames, mask, method="contextualize", collect=collect, **train
        )

    return jax.jit(run)


def changed(**values):
    return dataclasses.replace(CFG, **values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (dict(layer_norm_first=True), "layer_norm_first is true: only post-norm"),
        (dict(heads=5), "width 12 is not a multiple of heads 5"),
        (dict(position_groups=5), "not a multiple of position_groups"),
        (dict(position_width=12), "even kernel of 6"),
        (dict(conv_layers=()), "conv_layers is empty"),
        (dict(depth=0), "depth is 0"),
        (dict(extra_tokens=-1), "must not be negative"),
        (dict(alibi_scale="per_head"), "learned_per_head, learned, fixed"),
        (dict(dtype="float16"), "use float32 or bfloat16"),
        (dict(attention_implementation="flash"), "use one of xla, cudnn"),
        (dict(attention_dropout=1.0), r"attention_dropout is 1.0: it must lie in \[0, 1\)"),
        (dict(prenet_layer_drop=-0.1), "prenet_layer_drop is -0.1"),
    ],
)
def test_impossible_configs_are_refused_in_a_sentence(values, sentence):
    with pytest.raises(UserError, match=sentence):
        changed(**values)


def test_a_config_survives_json_and_names_the_nearest_field():
    stored = json.loads(json.dumps(dataclasses.asdict(CFG)))
    assert Emotion2VecConfig.from_dict(stored) == CFG
    assert SameConfig is Emotion2VecConfig
    with pytest.raises(UserError, match="'widht'; did you mean 'width'"):
        Emotion2VecConfig.from_dict({"widht": 3})


def test_frames_follow_the_published_stem():
    cfg = Emotion2VecConfig()
    assert (cfg.hop_samples, cfg.receptive_samples, cfg.position_kernel) == (320, 400, 19)
    samples = np.array([0, 1, 399, 400, 719, 720, 21937, 480_000])
    wanted = [0, 0, 0, 1, 1, 2, 68, 1499]
    assert cfg.frames(samples).tolist() == wanted
    assert [cfg.frames(int(n)) for n in samples] == wanted
    assert jax.jit(cfg.frames)(samples).tolist() == wanted


def test_the_frame_count_is_that_of_the_stem_itself():
    def local_features(audio):
        return Emotion2Vec(CFG).apply(variables, audio, np.array([9]), method="local_features")

    variables = initial(CFG)
    for samples in (CFG.receptive_samples, 101, 699, 700):
        for part in jax.eval_shape(local_features, np.zeros((1, samples), np.float32)):
            assert part.shape[1] == CFG.frames(samples)


def test_every_parameter_has_its_name_shape_and_known_axes():
    params = boxes(CFG)
    assert set(params) == {
        "local_encoder", "project_features", "relative_positional_encoder", "extra_tokens",
        "alibi_scale", "context_encoder", "blocks",
    }  # fmt: skip
    names = {name for name, _ in RULES} | {None}
    for box in jax.tree.leaves(params, is_leaf=lambda leaf: hasattr(leaf, "names")):
        assert len(box.names) == len(box.value.shape) and set(box.names) <= names
    qkv = params["blocks"]["attn"]["qkv"]["kernel"]
    assert qkv.value.shape == (3, 12, 36) and qkv.names == ("layers", "width", "qkv")
    prenet = params["context_encoder"]["blocks"]["mlp"]["fc2"]["kernel"]
    assert prenet.value.shape == (2, 24, 12) and prenet.names == ("layers", "mlp", "width")
    conv = params["relative_positional_encoder"]["conv_1"]["kernel"]
    assert conv.value.shape == (3, 6, 12)
    assert params["alibi_scale"].value.shape == (1, 3)
    assert params["extra_tokens"].value.shape == (2, 12)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (dict(alibi_scale="learned"), (1, 1)),
        (dict(learned_alibi_scale_per_layer=True), (5, 3)),
        (dict(alibi_scale="fixed"), None),
        (dict(alibi=False), None),
    ],
)
def test_alibi_scale_exists_only_where_it_is_learned(values, shape):
    params = boxes(changed(**values))
    assert ("alibi_scale" in params) == (shape is not None)
    if shape:
        assert params["alibi_scale"].value.shape == shape


def test_stem_biases_and_missing_tokens_and_prenet_are_options():
    cfg = changed(conv_bias=True, extra_tokens=0, prenet_depth=0)
    variables = initial(cfg)
    assert variables["params"]["local_encoder"]["conv_1"]["bias"].shape == (7,)
    assert "blocks" not in variables["params"]["context_encoder"]
    output = encode(cfg, variables)
    assert output.tokens.shape == (2, 0, 12) and np.isfinite(output.frames).all()
    variables["params"]["local_encoder"]["conv_1"]["bias"][2] += 1
    assert np.abs(encode(cfg, variables).frames - output.frames).max() > 1e-3


def test_a_scale_per_layer_acts_on_its_own_layer():
    cfg = changed(learned_alibi_scale_per_layer=True)
    params = initial(cfg)["params"]
    scale = np.abs(params["alibi_scale"])
    larger = scale + 5.0 * (np.arange(5) == 3)[:, None]  # prenet first: the second main block
    before, after = (
        contextualize(
            cfg, {"params": {**params, "alibi_scale": value}}, collect=("prenet_out", "block_out")
        )[2]
        for value in (scale, larger.astype(np.float32))
    )
    np.testing.assert_array_equal(before["prenet_out"], after["prenet_out"])
    moved = np.abs(before["block_out"] - after["block_out"]).max((1, 2, 3))
    assert moved[0] == 0 and moved[1] > 1e-3


def test_a_fixed_scale_equals_a_learned_one_of_that_value():
    shallow = changed(prenet_depth=0)

    def frames(params, **values):
        return contextualize(dataclasses.replace(shallow, **values), {"params": params})[1]

    params = dict(initial(CFG)["params"])
    del params["alibi_scale"]
    one = frames(params, alibi_scale="fixed", alibi_initial_scale=1.7)
    learned = {**params, "alibi_scale": np.full((1, 1), 1.7, np.float32)}
    np.testing.assert_allclose(one, frames(learned, alibi_scale="learned"), atol=1e-5)
    assert np.abs(frames(params, alibi=False) - one).max() > 1e-3


def test_rematerialised_blocks_give_the_same_features_and_gradients():
    variables = initial(CFG)

    def gradient(cfg):
        def total(variables, frames):
            tokens, frames, _ = compiled_context(cfg)(variables, frames, None)
            return jnp.square(frames).sum() + tokens.sum(), (tokens, frames)

        grad = jax.grad(total, (0, 1), has_aux=True)
        return jax.jit(grad)(variables, FRAMES)

    one, other = (gradient(changed(prenet_depth=0, remat=remat)) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(a).max()))


def test_training_positions_equal_those_of_inference():
    variables = initial(CFG)
    still, train = encode(CFG, variables), encode(changed(**QUIET), variables, seed=0)
    np.testing.assert_allclose(still.frames, train.frames, atol=1e-5)


def test_dropout_acts_in_training_only_and_follows_its_key():
    variables = initial(CFG)
    still = encode(CFG, variables).frames

    def draw(seed):
        return encode(CFG, variables, seed=seed).frames

    np.testing.assert_array_equal(still, encode(CFG, variables).frames)
    np.testing.assert_array_equal(draw(1), draw(1))
    assert np.abs(draw(1) - still).max() > 1e-2 and np.abs(draw(1) - draw(2)).max() > 1e-2


@pytest.mark.parametrize(
    "name",
    ["input_dropout", "dropout", "attention_dropout", "activation_dropout", "mlp_dropout",
     "prenet_dropout", "layer_drop", "prenet_layer_drop"],
)  # fmt: skip
def test_each_dropout_has_an_effect_of_its_own(name):
    prenet_depth = 2 if name.startswith("prenet") else 0  # without one, the blocks' own
    cfg = changed(**{**QUIET, "prenet_depth": prenet_depth, name: 0.6})
    variables = initial(CFG)
    draws = np.stack([contextualize(cfg, variables, seed=seed)[1] for seed in range(6)])
    assert np.abs(draws - draws[0]).max() > 1e-3


def test_a_dropped_layer_passes_its_input_on():
    cfg = changed(**{**QUIET, "layer_drop": 0.999999})
    _, frames, layers = contextualize(cfg, initial(CFG), seed=0, collect=("prenet_out",))
    np.testing.assert_array_equal(layers["prenet_out"][:, 2:], frames)


def test_given_statistics_replace_the_rows_own():
    plain = changed(
        conv_layers=(ConvLayer(7, 16, 20),), position_width=3, position_depth=1, prenet_depth=0
    )
    cfg = dataclasses.replace(plain, normalize_waveform=True)
    variables = initial(plain)
    whole = np.concatenate([AUDIO[0], AUDIO[1]])
    statistics = np.array([[whole.mean(), whole.var()]] * 2, np.float32)
    normalised = (AUDIO - whole.mean()) / np.sqrt(whole.var() + 1e-5)
    found = encode(cfg, variables, statistics=statistics)
    wanted = encode(plain, variables, audio=normalised)
    np.testing.assert_allclose(found.tokens, wanted.tokens, atol=1e-5)
    assert np.abs(encode(cfg, variables).tokens - wanted.tokens).max() > 1e-4


def test_pooled_is_the_mean_of_real_frames_in_float32():
    output = encode(changed(dtype="bfloat16"), initial(CFG))
    assert output.frames.dtype == jnp.bfloat16 and output.pooled.dtype == jnp.float32
    frames = np.asarray(output.frames, np.float32)
    for row, count in enumerate(CFG.frames(SAMPLES)):
        mean = frames[row, :count].mean(0)
        np.testing.assert_allclose(output.pooled[row], mean, atol=1e-5)


def test_hidden_frames_are_neither_seen_nor_pooled():
    variables = initial(CFG)
    hidden = np.zeros((2, CFG.frames(700)), bool)
    hidden[0, 5:9] = True
    found = encode(CFG, variables, hidden=hidden)
    loud = AUDIO.copy()
    start = 4 * CFG.hop_samples + CFG.receptive_samples  # samples that only frames 5 to 8 reach
    end = 9 * CFG.hop_samples
    assert start < end
    loud[0, start:end] *= 50
    other = encode(CFG, variables, audio=loud, hidden=hidden)
    np.testing.assert_allclose(found.pooled, other.pooled, atol=1e-5)
    np.testing.assert_allclose(found.tokens, other.tokens, atol=1e-5)
    plain = encode(CFG, variables)
    assert np.abs(encode(CFG, variables, audio=loud).tokens - plain.tokens).max() > 1e-3
    assert np.abs(found.tokens[0] - plain.tokens[0]).max() > 1e-3
    np.testing.assert_allclose(found.tokens[1], plain.tokens[1], atol=1e-5)
