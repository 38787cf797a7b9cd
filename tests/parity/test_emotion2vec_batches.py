"""Padded batches: ours equal the single utterances, where upstream's own do not."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models import emotion2vec
from c2ser_jax.models.emotion2vec import Emotion2Vec, masked_mean, normalize_waveform
from tests.golden_roots import golden_cases
from tests.parity.golden_weights import (
    config_from,
    encode,
    encoder_params,
    load_checkpoint,
    read_arrays,
)


def read_model(case):
    checkpoint = load_checkpoint(case / "checkpoint.pt")
    cfg = config_from(checkpoint["cfg"]["model"])
    return cfg, encoder_params(checkpoint["model"], cfg)


@pytest.fixture(scope="module", params=golden_cases("emotion2vec/batch_invariance"), ids=str)
def normalised(request):
    cfg, params = read_model(request.param.parent / "e2vs_tiny")
    io = read_arrays(request.param)
    audio = np.full((4, 32000), 7.0, np.float32)  # what stands in the padding must not matter
    for row in range(4):
        audio[row, : io["lengths"][row]] = io[f"u{row}_wav_raw"]
    return dataclasses.replace(cfg, normalize_waveform=True), params, audio, io


@pytest.fixture(scope="module", params=golden_cases("emotion2vec/e2vs_tiny"), ids=str)
def raw(request):
    return *read_model(request.param), read_arrays(request.param)


def test_padded_batch_equals_the_truth_of_single_utterances(normalised):
    cfg, params, audio, io = normalised
    output = encode(cfg, params, audio, io["lengths"])
    for row, frames in enumerate(io["frames"]):
        found = {
            "x": output.frames[row, :frames],
            "pos": output.layers["pos"][row, :frames],
            "extra_tokens_out": output.tokens[row],
            "utt_mean": output.pooled[row],
        }
        for name, value in found.items():
            np.testing.assert_allclose(value, io[f"u{row}_{name}"], rtol=0, atol=1e-4)
        assert output.frame_mask[row].sum() == frames
    shorter = [0, 1, 3]
    upstream = io["upstream_padded_extra_tokens_out"]
    assert np.abs(output.tokens - upstream).max((1, 2))[shorter].min() > 0.1


def unmasked_positions(monkeypatch):
    monkeypatch.setattr(emotion2vec, "zero_padding", lambda x, mask: x)


def masked_once(monkeypatch):
    calls = []

    def first_only(x, mask):
        calls.append(None)
        return original(x, mask) if len(calls) == 1 else x

    original = emotion2vec.zero_padding
    monkeypatch.setattr(emotion2vec, "zero_padding", first_only)


@pytest.mark.parametrize("fault", [unmasked_positions, masked_once, None])
def test_planted_leak_into_the_positions_shows(normalised, fault, monkeypatch):
    cfg, params, audio, io = normalised
    output = encode(cfg, params, audio, io["lengths"])
    proj, real = output.layers["proj"], output.frame_mask
    if fault is not None:
        fault(monkeypatch)
    found = Emotion2Vec(cfg).apply({"params": params}, proj, real, method="positions")
    deviation = np.abs(found[3, : io["frames"][3]] - io["u3_pos"]).max()
    assert deviation < 1e-4 if fault is None else deviation > 0.1


@pytest.mark.parametrize("fault", ["all frames real", "one frame more", None])
def test_planted_leak_into_attention_and_pooling_shows(normalised, fault):
    cfg, params, audio, io = normalised
    output = encode(cfg, params, audio, io["lengths"])
    real = output.frame_mask
    if fault is not None:
        real = real | True if fault == "all frames real" else jnp.roll(real, 1, 1) | real
    frames = output.layers["proj"] + output.layers["pos"]
    tokens, frames, _ = Emotion2Vec(cfg).apply(
        {"params": params}, frames, real, method="contextualize"
    )
    for found, name in ((tokens, "extra_tokens_out"), (masked_mean(frames, real), "utt_mean")):
        deviation = np.abs(found[3] - io[f"u3_{name}"]).max()
        assert deviation < 1e-4 if fault is None else deviation > 1e-3, name


def test_planted_normalisation_over_padding_shows(normalised):
    _, _, audio, io = normalised
    lengths = io["lengths"]
    padded = np.where(np.arange(audio.shape[1]) < lengths[:, None], audio, 0)
    right, wrong = (
        normalize_waveform(padded, samples) for samples in (lengths, lengths * 0 + audio.shape[1])
    )
    alone = normalize_waveform(io["u3_wav_raw"][None], lengths[3:])[0]
    assert np.abs(right[3, : lengths[3]] - alone).max() < 1e-5
    assert np.abs(wrong[3, : lengths[3]] - alone).max() > 1e-2


def test_ours_differs_from_upstreams_padded_batch_and_equals_singles(raw):
    cfg, params, io = raw
    output = encode(cfg, params, io["b_wav"], io["b_lengths"])
    np.testing.assert_array_equal(output.frame_mask, ~io["b_padding_mask_out"])
    assert np.abs(output.frames[0] - io["b_x"][0]).max() < 1e-4  # the longest row has no padding
    for row, frames in list(enumerate(io["b_frames"]))[1:]:
        alone = encode(
            cfg, params, io["b_wav"][row : row + 1, : io["b_lengths"][row]], [io["b_lengths"][row]]
        )
        near = np.abs(output.frames[row, :frames] - alone.frames[0]).max()
        assert near < 1e-5, row
        np.testing.assert_allclose(output.tokens[row], alone.tokens[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(output.pooled[row], alone.pooled[0], rtol=0, atol=1e-5)
        upstream = np.abs(output.frames[row, :frames] - io["b_x"][row, :frames]).max()
        assert upstream > 0.1, row
        # Before the positional stack there is no difference: nothing leaks through the stem.
        np.testing.assert_allclose(
            output.layers["proj"][row, :frames], io["b_proj"][row, :frames], rtol=0, atol=1e-4
        )
