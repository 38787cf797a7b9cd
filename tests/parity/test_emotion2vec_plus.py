"""emotion2vec+ with its waveform normalisation and 9-class head against FunASR's numbers."""

import functools
from functools import partial

import jax
import numpy as np
import pytest

from c2ser_jax.models.emotion2vec import Emotion2VecClassifier, normalize_waveform
from tests.golden_roots import golden_cases
from tests.parity.golden_weights import (
    config_from,
    encoder_params,
    load_checkpoint,
    read_arrays,
    read_meta,
)

UTTERANCES = ["u0", "u1", "u2"]


@pytest.fixture(scope="module", params=golden_cases("emotion2vec/emotion2vec_plus_tiny"), ids=str)
def case(request):
    meta = read_meta(request.param)
    cfg = config_from(meta["model_conf"], normalize_waveform=True)
    state = load_checkpoint(request.param / "model.pt")["model"]
    state = {name.removeprefix("d2v_model."): value for name, value in state.items()}
    head = {"kernel": state["proj.weight"].T, "bias": state["proj.bias"]}
    return cfg, {"encoder": encoder_params(state, cfg), "proj": head}, read_arrays(request.param)


@functools.cache
def compiled(cfg, classes):
    return jax.jit(partial(Emotion2VecClassifier(cfg, classes).apply, return_layers=True))


def classify(cfg, params, audio, fresh=False):
    build = compiled.__wrapped__ if fresh else compiled
    apply = build(cfg, params["proj"]["bias"].shape[0])
    logits, output = apply({"params": params}, audio[None], np.array([len(audio)], np.int32))
    return logits[0], output


@pytest.mark.parametrize("utterance", UTTERANCES)
def test_features_and_scores_equal_funasr(case, utterance):
    cfg, params, io = case
    logits, output = classify(cfg, params, io[f"{utterance}_wav"])
    near = partial(np.testing.assert_allclose, rtol=0, atol=1e-4)
    near(output.frames[0], io[f"{utterance}_frame_feats"])
    near(output.pooled[0], io[f"{utterance}_utt_feats"])
    near(logits, io[f"{utterance}_logits"])
    both = np.concatenate([output.tokens[0], output.frames[0]])
    near(both, io[f"{utterance}_x_with_extra_tokens"])
    scores = jax.nn.softmax(logits)
    np.testing.assert_allclose(scores, io[f"{utterance}_scores"], rtol=0, atol=1e-5)
    usable = np.array([0, 3, 4, 6, 7, 8])  # the token list of u*_scores_unuse
    scores = jax.nn.softmax(logits[usable])
    np.testing.assert_allclose(scores, io[f"{utterance}_scores_unuse"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("utterance", UTTERANCES)
def test_waveform_and_last_layer_equal_funasr(case, utterance):
    cfg, params, io = case
    wave = io[f"{utterance}_wav"]
    normalised = normalize_waveform(wave[None], np.array([len(wave)]))[0]
    np.testing.assert_allclose(normalised, io[f"{utterance}_wav_normalised"], rtol=0, atol=1e-5)
    wanted = io[f"{utterance}_layer_results_last"]
    found = classify(cfg, params, wave)[1].layers["layer_results"]
    np.testing.assert_allclose(found[-1, 0], wanted, rtol=0, atol=1e-4)
    assert np.abs(found[-2, 0] - wanted).max() > 1e-2


def test_planted_fault_in_the_waveform_norm_shows(case, monkeypatch):
    _, _, io = case
    wave, wanted = io["u1_wav"][None], io["u1_wav_normalised"]
    samples = np.array([wave.shape[1]])
    assert np.abs(wave[0] - wanted).max() > 1e-3
    louder = normalize_waveform(wave * 1e3, samples)[0]  # as if there were no epsilon
    assert np.abs(louder - wanted).max() > 1e-3
    shifted = normalize_waveform(wave, samples - 400)[0]
    assert np.abs(shifted - wanted).max() > 1e-3


def absolute_scale(params):
    params["encoder"]["alibi_scale"] = np.abs(params["encoder"]["alibi_scale"])


def swapped_classes(params):
    params["proj"]["kernel"] = np.roll(params["proj"]["kernel"], 1, 1)


def lost_block_bias(params):
    params["encoder"]["blocks"]["mlp"]["fc2"]["bias"] *= 0


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (absolute_scale, "frame_feats"),
        (lost_block_bias, "layer_results_last"),
        (lost_block_bias, "utt_feats"),
        (swapped_classes, "logits"),
        (swapped_classes, "scores"),
    ],
)
def test_planted_fault_in_the_weights_shows(case, fault, name):
    cfg, params, io = case
    params = jax.tree.map(np.array, params)
    fault(params)
    logits, output = classify(cfg, params, io["u0_wav"])
    found = {
        "frame_feats": output.frames[0],
        "utt_feats": output.pooled[0],
        "layer_results_last": output.layers["layer_results"][-1, 0],
        "logits": logits,
        "scores": jax.nn.softmax(logits),
    }
    assert np.abs(found[name] - io[f"u0_{name}"]).max() > 1e-3
