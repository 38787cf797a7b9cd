"""What Whisper and the connector refuse, their published sizes, dropout, remat and bfloat16."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.connector import Connector, ConnectorConfig
from c2ser_jax.models.log_mel import log_mel
from c2ser_jax.models.whisper import SIZES, WhisperEncoder, WhisperEncoderConfig
from c2ser_jax.training.checkpoint import flatten
from tests.unit.models.generic import generic_params

SMALL = WhisperEncoderConfig(width=12, depth=2, heads=3, mlp_width=20, positions=8, mel_bins=5)
JOINT = ConnectorConfig(
    encoder_width=12, width=10, depth=2, heads=5, mlp_width=14, output_width=9, positions=6
)  # fmt: skip


def shapes(model, *inputs):
    """{path: shape} of a model's parameters, nothing computed."""
    tree = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs))["params"]
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def count(sizes, *without):
    kept = {path: shape for path, shape in sizes.items() if not path.endswith(without)}
    return sum(int(np.prod(shape)) for shape in kept.values())


def test_published_sizes_are_exact():
    cfg = WhisperEncoderConfig.named("medium")
    assert cfg == WhisperEncoderConfig() and cfg.max_samples == 480_000
    sizes = shapes(WhisperEncoder(cfg), jnp.zeros((1, 2, 80)), jnp.ones((1,), jnp.int32))
    assert count(sizes, "positions") == 305_680_384
    front = [path for path in sizes if path.startswith("conv")]
    assert sum(int(np.prod(sizes[path])) for path in front) == 3_393_536
    inputs = jnp.zeros((1, 10, 768)), jnp.zeros((1, 4, 1024)), jnp.ones((1, 4), bool)
    sizes = shapes(Connector(ConnectorConfig()), *inputs)
    parts = ("down_sample", "speech_transformer", "speech_llama_proj")
    assert sizes["speech_marks"] == (2, 3584)
    assert [
        count({p: s for p, s in sizes.items() if p.startswith(part)}, "positions") for part in parts
    ] == [9_440_256, 38_849_536, 3_673_600]


@pytest.mark.parametrize("size", SIZES)
def test_every_published_encoder_can_be_built(size):
    cfg = WhisperEncoderConfig.named(size)
    assert cfg.width // cfg.heads == 64 and cfg.mlp_width == 4 * cfg.width
    assert cfg.mel_bins == (128 if "v3" in size else 80)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(width=13, heads=13), "width is 13: it must be even"),
        (dict(heads=7), "is not a multiple of heads 7"),
        (dict(depth=0), "depth is 0: it must be a whole number"),
        (dict(positions=80.0), "positions is 80.0: it must be a whole number"),
        (dict(dropout=1.0), "dropout is 1.0: it must lie in"),
        (dict(dtype="float16"), "dtype is 'float16': use float32 or bfloat16"),
        (dict(attention_implementation="flash"), "attention_implementation is 'flash'"),
    ],
)
@pytest.mark.parametrize("cfg", [SMALL, JOINT])
def test_wrong_configs_are_refused(cfg, changes, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        dataclasses.replace(cfg, **changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("cfg", [SMALL, JOINT])
def test_configs_come_back_from_json(cfg):
    stored = json.loads(json.dumps(dataclasses.asdict(cfg)))
    assert type(cfg).from_dict(stored) == cfg
    with pytest.raises(UserError, match="no field 'withd'; did you mean 'width'"):
        type(cfg).from_dict({"withd": 3})


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match="no Whisper 'huge': use one of tiny"):
        WhisperEncoderConfig.named("huge")


def test_too_long_audio_is_refused_and_never_cut():
    lengths = jnp.full((1,), 17, jnp.int32)
    with pytest.raises(UserError, match="17 mel frames .* 8 positions hold"):
        shapes(WhisperEncoder(SMALL), jnp.zeros((1, 17, 5)), lengths)
    assert shapes(WhisperEncoder(SMALL), jnp.zeros((1, 16, 5)), lengths)
    with pytest.raises(UserError, match="30.01 s but pad_to_30s takes at most 30 s"):
        jax.eval_shape(lambda a, n: log_mel(a, n, pad_to_30s=True),
                       jnp.zeros((1, 480_160)), lengths)  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "frames", "sentence"),
    [
        ((1, 2, 13), (1, 4, 12), "tokens of width 13 don't fit the connector's encoder_width 12"),
        ((1, 2, 7), (1, 4, 11), "frames have width 11, the connector's encoder_width is 12"),
        ((1, 4, 7), (1, 9, 12), "4 tokens and 3 frames are more than the connector's 6 positions"),
        ((1, 4, 7), None, "got no frames"),
    ],
)
def test_what_the_connector_cannot_join_is_refused(tokens, frames, sentence):
    given = None if frames is None else jnp.zeros(frames)
    mask = None if frames is None else jnp.ones(frames[:2], bool)
    with pytest.raises(UserError, match=sentence):
        jax.eval_shape(Connector(JOINT).init, jax.random.key(0), jnp.zeros(tokens), given, mask)


def test_both_modes_have_the_same_parameters():
    tokens, frames, mask = jnp.zeros((1, 2, 7)), jnp.zeros((1, 4, 12)), jnp.ones((1, 4), bool)
    full = shapes(Connector(JOINT), tokens, frames, mask)
    alone = nn.meta.unbox(
        jax.eval_shape(lambda key: Connector(JOINT).init(key, tokens, ssl_only=True),
                       jax.random.key(0)))["params"]  # fmt: skip
    assert {path: leaf.shape for path, leaf in flatten(alone).items()} == full


def model_and_inputs(cfg):
    generator = np.random.default_rng(0)
    draw = lambda *shape: generator.standard_normal(shape).astype(np.float32)  # noqa: E731
    if isinstance(cfg, WhisperEncoderConfig):
        return WhisperEncoder(cfg), (draw(2, 13, 5), np.array([13, 6], np.int32)), "frames"
    mask = np.arange(7) < np.array([[7], [3]])
    return Connector(cfg), (draw(2, 3, 7), draw(2, 7, 12), mask), "embeddings"


@pytest.mark.parametrize("cfg", [SMALL, JOINT])
def test_options_change_what_they_should(cfg):
    model, inputs, name = model_and_inputs(cfg)
    params = generic_params(jax.eval_shape(model.init, jax.random.key(0), *inputs))

    def run(**changes):
        other, _, _ = model_and_inputs(dataclasses.replace(cfg, **changes))
        train = changes.get("dropout") is not None
        rngs = {"dropout": jax.random.key(1)} if train else None
        apply = jax.jit(lambda params: other.apply(params, *inputs, train=train, rngs=rngs))
        output = apply(params)
        return np.asarray(getattr(output, name), np.float32), np.asarray(output.mask)

    rates = dict(position_dropout=0.2, activation_dropout=0.2)
    plain, mask = run()
    dropped, _ = run(dropout=0.2, **rates)
    assert np.abs(dropped - plain)[mask].max() > 1e-2
    none, _ = run(dropout=0.0, position_dropout=0.0, activation_dropout=0.0)
    np.testing.assert_allclose(none, plain, rtol=0, atol=1e-5)
    remade, _ = run(remat=True)
    np.testing.assert_allclose(remade, plain, rtol=0, atol=1e-5)
    rough, _ = run(dtype="bfloat16")
    assert 0 < np.abs(rough - plain)[mask].max() < 0.1 * np.abs(plain).max()
