"""Every intermediate of the encoder against upstream's, one utterance at a time (e2vs_tiny)."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models import attention, emotion2vec, layers
from c2ser_jax.models.emotion2vec import Emotion2Vec
from tests.golden_roots import golden_cases
from tests.parity.golden_weights import (
    config_from,
    encode,
    encoder_params,
    load_checkpoint,
    read_arrays,
)

CASES = golden_cases("emotion2vec/e2vs_tiny")


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    checkpoint = load_checkpoint(request.param / "checkpoint.pt")
    cfg = config_from(checkpoint["cfg"]["model"])
    return cfg, encoder_params(checkpoint["model"], cfg), read_arrays(request.param)


def assert_near(found, wanted, name):
    assert found.shape == wanted.shape, name
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("utterance", ["s0", "s1", "s2"])
def test_every_intermediate_equals_upstream(case, utterance):
    cfg, params, io = case
    output = encode(cfg, params, io[f"{utterance}_wav"])
    found = {name: value[0] for name, value in output.layers.items() if value.ndim == 3}
    found.update({name: value[:, 0] for name, value in output.layers.items() if value.ndim == 4})
    found["conv"] = found["conv"].T
    found["x"], found["extra_tokens_out"] = output.frames[0], output.tokens[0]
    for name in ("conv", "proj", "pos", "prenet_in", "prenet_out", "block_out", "layer_results",
                 "x", "extra_tokens_out"):  # fmt: skip
        assert_near(found[name], io[f"{utterance}_{name}"], name)
    assert_near(output.frames[0, :10], io[f"{utterance}_utt_x_upstream"], "published tokens")
    assert_near(output.pooled[0], io[f"{utterance}_x"].mean(0), "pooled")


def test_normalised_waveform_equals_upstream(case):
    cfg, params, io = case
    normalised = dataclasses.replace(cfg, normalize_waveform=True)
    for utterance in ("s0", "s1", "s2"):
        wave = io[f"{utterance}_wav"]
        audio = emotion2vec.normalize_waveform(wave[None], np.array([len(wave)]))
        wanted = io[f"{utterance}_x_normalised_input"]
        assert_near(encode(cfg, params, audio).frames[0], wanted, utterance)
        assert np.abs(encode(cfg, params, wave).frames[0] - wanted).max() > 1e-3
    statistics = np.array([[wave.mean(), wave.var()]], np.float32)
    assert_near(encode(normalised, params, wave).frames[0], wanted, "own statistics")
    given = encode(normalised, params, wave, audio_statistics=statistics)
    assert_near(given.frames[0], wanted, "given statistics")
    other = encode(normalised, params, wave, audio_statistics=statistics * 4)
    assert np.abs(other.frames[0] - wanted).max() > 1e-3


def distance_bias(cfg, params, frames):
    slopes = Emotion2Vec(cfg).apply({"params": params}, method="_slopes")
    distances = emotion2vec.frame_distances(jnp.arange(frames)[None], cfg.extra_tokens)
    return -distances[0] * slopes[0][:, None, None]


def test_distance_bias_equals_upstream(case):
    cfg, params, io = case
    wanted = io["s1_alibi_bias_scaled"]
    bias = distance_bias(cfg, params, len(io["s1_x"]))
    np.testing.assert_allclose(bias, wanted, rtol=1e-6, atol=1e-6)
    assert float(params["alibi_scale"].min()) < 0 and np.abs(wanted).sum((1, 2)).min() == 0


def unclamped_alibi(monkeypatch):
    monkeypatch.setattr(emotion2vec.jnp, "maximum", lambda a, b: a)


def tokens_have_distance(monkeypatch):
    def distances(positions, tokens):
        return original(jnp.arange(positions.shape[1] + tokens)[None], 0)

    original = emotion2vec.frame_distances
    monkeypatch.setattr(emotion2vec, "frame_distances", distances)


def geometric_slopes(monkeypatch):
    monkeypatch.setattr(
        emotion2vec, "alibi_slopes", lambda heads: 2.0 ** (-8 / heads * np.arange(1, heads + 1))
    )


@pytest.mark.parametrize("fault", [unclamped_alibi, tokens_have_distance, geometric_slopes])
def test_planted_fault_in_the_bias_shows(case, fault, monkeypatch):
    cfg, params, io = case
    fault(monkeypatch)
    bias = distance_bias(cfg, params, len(io["s1_x"]))
    assert np.abs(bias - io["s1_alibi_bias_scaled"]).max() > 1e-2


def tanh_gelu(monkeypatch):
    for module in (layers, emotion2vec):
        monkeypatch.setattr(module, "gelu", partial(jax.nn.gelu, approximate=True))


def small_epsilon(monkeypatch):
    original = layers.layer_norm

    def smaller(*args, epsilon):
        return original(*args, epsilon=epsilon / 10)

    for module in (layers, emotion2vec):
        monkeypatch.setattr(module, "layer_norm", smaller)


def no_query_scale(monkeypatch):
    def unscaled(query, *args, **options):
        return original(query * query.shape[-1] ** 0.5, *args, **options)

    original = attention.attend
    monkeypatch.setattr(attention, "attend", unscaled)


@pytest.mark.parametrize(
    ("fault", "stage"),
    [(tanh_gelu, "proj"), (small_epsilon, "proj"), (no_query_scale, "block_out"), (None, "proj"),
     (None, "block_out")],
)  # fmt: skip
def test_planted_fault_in_the_code_shows(case, fault, stage, monkeypatch):
    cfg, params, io = case
    if fault is not None:
        fault(monkeypatch)
    model, wave = Emotion2Vec(cfg), io["s1_wav"]
    if stage == "proj":
        run = jax.jit(lambda *args: model.apply(*args, method="local_features")[0][0])
        found = run({"params": params}, wave[None], np.array([len(wave)]))
    else:
        frames = (io["s1_proj"] + io["s1_pos"])[None]
        real = np.ones(frames.shape[:2], bool)
        options = dict(method="contextualize", collect=("block_out",))
        run = jax.jit(lambda *args: model.apply(*args, **options)[2]["block_out"][:, 0])
        found = run({"params": params}, frames, real)
    deviation = np.abs(found - io[f"s1_{stage}"]).max()
    assert deviation < 1e-4 if fault is None else deviation > 3e-4


def swap_heads(params):
    kernel = params["blocks"]["attn"]["qkv"]["kernel"]
    depth, width, _ = kernel.shape
    params["blocks"]["attn"]["qkv"]["kernel"] = (
        kernel.reshape(depth, width, 6, 3, -1).swapaxes(2, 3).reshape(kernel.shape)
    )


def reverse_taps(params):
    conv = params["relative_positional_encoder"]["conv_0"]
    conv["kernel"] = conv["kernel"][::-1]


def reverse_layers(params):
    params["blocks"] = jax.tree.map(lambda leaf: leaf[::-1], params["blocks"])


def exchange_norms(params):
    blocks = params["context_encoder"]["blocks"]
    blocks["norm1"], blocks["norm2"] = blocks["norm2"], blocks["norm1"]


def shift_tokens(params):
    params["extra_tokens"] = np.roll(params["extra_tokens"], 1, 0)


@pytest.mark.parametrize(
    "fault", [swap_heads, reverse_taps, reverse_layers, exchange_norms, shift_tokens]
)
def test_planted_fault_in_the_weights_shows(case, fault):
    cfg, params, io = case
    params = jax.tree.map(lambda leaf: leaf, params)
    fault(params)
    output = encode(cfg, params, io["s1_wav"])
    wrong = [
        np.abs(output.frames[0] - io["s1_x"]).max(),
        np.abs(output.tokens[0] - io["s1_extra_tokens_out"]).max(),
    ]
    assert max(wrong) > 1e-3
