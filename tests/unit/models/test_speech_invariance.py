"""Log-mel, encoder and connector say of an utterance the same alone, padded and in any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models.connector import Connector, ConnectorConfig
from c2ser_jax.models.log_mel import log_mel
from c2ser_jax.models.whisper import WhisperEncoder, WhisperEncoderConfig
from tests.unit.models.generic import generic_params

ENCODER = WhisperEncoderConfig(width=24, depth=3, heads=4, mlp_width=40, positions=300)
CONNECTOR = ConnectorConfig(
    encoder_width=24, width=20, depth=2, heads=5, mlp_width=28, output_width=14, positions=90
)  # fmt: skip
TOKENS, TOKEN_WIDTH = 3, 7
SAMPLES = (16_000, 16_000 + 160, 31_999, 12_345, 4_963, 640, 320, 200)
ROOM = 40_000


@pytest.fixture(scope="module")
def params():
    features, lengths = jnp.zeros((1, 4, 80)), jnp.full((1,), 4, jnp.int32)
    tokens, frames = jnp.zeros((1, TOKENS, TOKEN_WIDTH)), jnp.zeros((1, 4, 24))
    key, mask = jax.random.key(0), jnp.ones((1, 4), bool)
    encoder = jax.eval_shape(WhisperEncoder(ENCODER).init, key, features, lengths)
    connector = jax.eval_shape(Connector(CONNECTOR).init, key, tokens, frames, mask)
    return {"encoder": generic_params(encoder), "connector": generic_params(connector, 4)}


@pytest.fixture(scope="module")
def clips():
    generator = np.random.default_rng(1)
    waves = [generator.standard_normal(n).astype(np.float32) * 0.1 for n in SAMPLES]
    tokens = generator.standard_normal((len(SAMPLES), TOKENS, TOKEN_WIDTH)).astype(np.float32)
    return waves, tokens


def forward(params, audio, lengths, tokens):
    features, frames = log_mel(audio, lengths)
    encoded = WhisperEncoder(ENCODER).apply(params["encoder"], features, frames)
    heard = Connector(CONNECTOR).apply(params["connector"], tokens, encoded.frames, encoded.mask)
    return features, frames, encoded, heard


compiled = jax.jit(forward)


def run(params, waves, tokens, room, fill=np.nan):
    """One dict of real frames per utterance, from a batch padded to `room` samples with `fill`."""
    audio = np.full((len(waves), room), fill, np.float32)
    for row, wave in zip(audio, waves, strict=True):
        row[: len(wave)] = wave
    lengths = np.array([len(wave) for wave in waves], np.int32)
    features, frames, encoded, heard = jax.tree.map(
        np.asarray, compiled(params, audio, lengths, tokens)
    )
    return [
        {
            "features": features[i, : frames[i]],
            "frames": encoded.frames[i, encoded.mask[i]],
            "heard": heard.embeddings[i, heard.mask[i]],
        }
        for i in range(len(waves))
    ]


def assert_same(found, wanted):
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name in other:
            assert one[name].shape == other[name].shape
            message = f"{name} of clip {i}"
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-5, err_msg=message)


@pytest.fixture(scope="module")
def reference(params, clips):
    return run(params, *clips, ROOM)


def test_lengths_are_those_of_single_utterances(reference):
    mel = [n // 160 for n in SAMPLES]
    assert [len(clip["features"]) for clip in reference] == mel == [100, 101, 199, 77, 31, 4, 2, 1]
    frames = [-(-n // 2) for n in mel]
    assert [len(clip["frames"]) for clip in reference] == frames
    assert [len(clip["heard"]) for clip in reference] == [TOKENS - (-n // 4) for n in frames]


@pytest.mark.parametrize("i", [2, 4, 7])  # odd lengths of mel frames
def test_alone_without_padding_equals_in_a_batch(params, clips, reference, i):
    waves, tokens = clips
    alone = run(params, [waves[i]], tokens[i : i + 1], len(waves[i]))
    assert_same(alone, [reference[i]])


def test_order_and_room_do_not_matter(params, clips, reference):
    waves, tokens = clips
    order = np.random.default_rng(2).permutation(len(waves))
    found = run(params, [waves[i] for i in order], tokens[order], 33_111, fill=7.0)
    assert_same(found, [reference[i] for i in order])


def test_a_shifted_length_shows(params, clips, reference):
    waves, tokens = clips
    found = run(params, [*waves[:2], waves[2][:-160], *waves[3:]], tokens, ROOM)[2]["frames"]
    assert np.abs(found - reference[2]["frames"][: len(found)]).max() > 1e-3


def test_rows_without_audio_are_finite_and_empty(params, clips):
    _, tokens = clips
    audio = np.full((len(tokens), ROOM), np.nan, np.float32)
    lengths = np.resize([0, 159], len(tokens)).astype(np.int32)
    found = jax.tree.map(np.asarray, compiled(params, audio, lengths, tokens))
    features, frames, encoded, heard = found
    assert not frames.any() and not encoded.mask.any()
    assert (heard.mask.sum(1) == TOKENS).all()
    for leaf in jax.tree.leaves((features, encoded.frames, heard)):
        assert np.isfinite(leaf).all()


def test_gradients_are_finite_and_reach_every_parameter(params, clips):
    waves, tokens = clips
    audio = np.zeros((4, 32_000), np.float32)
    for row, wave in zip(audio, waves, strict=False):
        row[: len(wave)] = wave
    lengths = np.array([len(wave) for wave in waves[:3]] + [0], np.int32)

    def loss(params):
        heard = forward(params, audio, lengths, tokens[:4])[-1]
        kept = jnp.where(heard.mask[:, :, None], heard.embeddings, 0.0)
        return jnp.square(kept).sum() + jnp.square(heard.begin - heard.end).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(leaf).all(), path
        is_key_bias = jax.tree_util.keystr(path).endswith("['k_proj']['bias']")
        assert is_key_bias or np.abs(leaf).max() > 0, path
