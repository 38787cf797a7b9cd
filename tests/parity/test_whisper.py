"""Log-mel and encoder against the published code, alone and in upstream's padded batches."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from c2ser_jax.data.lazy_librosa import load_librosa
from c2ser_jax.models import log_mel, prenorm, whisper
from c2ser_jax.models.whisper import WhisperEncoder, WhisperEncoderConfig
from tests.golden_roots import golden_cases
from tests.parity.speech_weights import arrays, encode, encoder_params

CASES = golden_cases("c2ser_llm/whisper_encoder")
FILES = ("openai_encoder.pt", "openai_whisper.pt", "wenet_whisper.pt", "hf/model.safetensors")
CFG = WhisperEncoderConfig(width=64, depth=2, heads=4, mlp_width=256)
PUBLISHED = dataclasses.replace(CFG, published_padding=True)
MEL, ENCODER = 2e-5, 2e-4


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    path = next(request.param / name for name in FILES if (request.param / name).exists())
    return encoder_params(path, CFG), arrays(request.param / "io.npz")


def assert_near(found, wanted, name, atol=ENCODER):
    assert found.shape == wanted.shape, name
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)


def features_of(wave, **options):
    function = jax.jit(partial(log_mel.log_mel, **options))
    features, frames = function(wave[None], np.array([len(wave)], np.int32))
    return np.asarray(features[0]), int(frames[0])


def test_log_mel_equals_the_published_front_ends(case):
    _, io = case
    for wave, wanted in (("wave", "logmel_c2ser"), ("wave_short", "logmel_c2ser_short")):
        features, frames = features_of(io[wave])
        assert frames == len(io[wave]) // 160
        assert_near(features, io[wanted], wanted, MEL)
    features, frames = features_of(io["wave"], pad_to_30s=True)
    assert frames == 3000
    assert_near(features, io["logmel_hf_30s"].T, "logmel_hf_30s", MEL)


def test_mel_filters_equal_the_published_ones(case):
    _, io = case
    librosa = load_librosa()
    np.testing.assert_allclose(log_mel.mel_filters(80), io["mel_filters"], rtol=0, atol=5e-9)
    for bins in (80, 128):
        wanted = librosa.filters.mel(sr=16000, n_fft=400, n_mels=bins)
        np.testing.assert_allclose(log_mel.mel_filters(bins), wanted, rtol=0, atol=5e-9)
    narrow = librosa.filters.mel(sr=16000, n_fft=400, n_mels=80, htk=True)
    assert np.abs(log_mel.mel_filters(80) - narrow).max() > 1e-3


def librosas_log_mel(wave, bins):
    """The same features by way of librosa, whose padding at the ends is a reflection, too."""
    librosa = load_librosa()
    spectrum = librosa.stft(wave, n_fft=400, hop_length=160, window="hann", pad_mode="reflect")
    mel = librosa.filters.mel(sr=16000, n_fft=400, n_mels=bins) @ np.abs(spectrum[:, :-1]) ** 2
    x = np.log10(np.maximum(mel, 1e-10)).T
    return (np.maximum(x, x.max() - 8) + 4) / 4


@pytest.mark.parametrize("bins", [80, 128])
def test_loud_ends_are_reflected_as_librosa_reflects_them(bins):
    wave = np.random.default_rng(5).standard_normal(4000).astype(np.float32) * 0.1
    features, _ = features_of(wave, mel_bins=bins)
    assert_near(features, librosas_log_mel(wave, bins), "features", MEL)


def test_ends_without_reflection_would_show(monkeypatch):
    wave = np.random.default_rng(5).standard_normal(4000).astype(np.float32) * 0.1
    silent_ends(monkeypatch)
    assert np.abs(features_of(wave)[0] - librosas_log_mel(wave, 80)).max() > 10 * MEL


def silent_ends(monkeypatch):
    def padded(audio, audio_samples):
        return jax.numpy.pad(audio, ((0, 0), (200, 200)))

    monkeypatch.setattr(log_mel, "_reflected", padded)


def late_windows(monkeypatch):
    original = log_mel._reflected
    monkeypatch.setattr(log_mel, "_reflected", lambda *a: original(*a)[:, 1:])


def amplitude(monkeypatch):
    original = log_mel._power
    monkeypatch.setattr(log_mel, "_power", lambda windows: original(windows) ** 0.5)


@pytest.mark.parametrize("fault", [late_windows, amplitude])
def test_planted_fault_in_the_front_end_shows(case, fault, monkeypatch):
    _, io = case
    fault(monkeypatch)
    features, _ = features_of(io["wave_short"])
    assert np.abs(features - io["logmel_c2ser_short"]).max() > 10 * MEL


def test_every_stage_equals_upstream_for_single_utterances(case):
    params, io = case
    output = encode(CFG, params, io["logmel_c2ser"][None], [400])
    assert_near(output.layers["embed"], io["enc_c2ser_embed"], "embed")
    for i in range(CFG.depth):
        assert_near(output.layers["block_out"][i], io[f"enc_c2ser_layer{i}"], f"layer {i}")
    assert_near(output.frames, io["enc_c2ser"], "enc_c2ser")
    assert np.array_equal(output.mask[:, None], io["enc_c2ser_mask"])
    output = encode(CFG, params, io["logmel_c2ser_short"][None], [124])
    assert_near(output.frames, io["enc_c2ser_short"], "enc_c2ser_short")
    assert np.array_equal(output.mask[:, None], io["enc_c2ser_short_mask"])
    if "enc_hf_30s" in io:  # the wider collection holds it
        output = encode(CFG, params, io["logmel_hf_30s"].T[None], [3000])
        assert_near(output.frames, io["enc_hf_30s"], "enc_hf_30s")


def test_waveform_to_frames_equals_upstream(case):
    params, io = case
    features, frames = features_of(io["wave_short"])
    output = encode(CFG, params, features[None], [frames])
    assert_near(output.frames, io["enc_c2ser_short"], "enc_c2ser_short")


def batch(io, parity):
    features = io["batch_odd_feats"]
    features = features if parity == "odd" else features[:, :350]
    return features, io[f"batch_{parity}_lens"], io[f"batch_{parity}_mask"][:, 0]


@pytest.mark.parametrize("parity", ["odd", "even"])
def test_published_padding_reproduces_upstreams_batches(case, parity):
    params, io = case
    features, lengths, mask = batch(io, parity)
    wanted = io[f"batch_{parity}_enc"][mask]
    output = encode(PUBLISHED, params, features, lengths)
    assert np.array_equal(output.mask, mask)
    assert_near(np.asarray(output.frames)[mask], wanted, parity)
    ours = encode(CFG, params, features, lengths)
    odd, even = lengths % 2 == 1, lengths % 2 == 0
    assert np.array_equal(np.asarray(ours.mask).sum(1), -(-lengths // 2))
    equal = np.asarray(ours.frames)[even], io[f"batch_{parity}_enc"][even]
    assert_near(equal[0][mask[even]], equal[1][mask[even]], "even lengths")
    short = odd & (lengths < features.shape[1])
    assert short.any()
    wrong = np.asarray(ours.frames)[short] - io[f"batch_{parity}_enc"][short]
    assert np.abs(wrong[mask[short]]).max() > 1e-2  # the odd one is changed by upstream's padding


def test_by_default_a_batch_gives_what_each_utterance_gives_alone(case):
    params, io = case
    features, lengths, _ = batch(io, "odd")
    together = encode(CFG, params, features, lengths)
    alone = encode(CFG, params, features[2:, :97], [97])
    assert alone.frames.shape[1] == 49 == int(together.mask[2].sum())
    assert_near(together.frames[2, :49], alone.frames[0], "odd length", 1e-5)


def tanh_gelu(monkeypatch):
    for module in (whisper, prenorm):
        monkeypatch.setattr(module, "gelu", partial(jax.nn.gelu, approximate=True))


def large_epsilon(monkeypatch):
    monkeypatch.setattr(prenorm, "EPSILON", 1e-3)


def no_query_scale(monkeypatch):
    original = prenorm.attend

    def unscaled(query, *args, **options):
        return original(query * query.shape[-1] ** 0.5, *args, **options)

    monkeypatch.setattr(prenorm, "attend", unscaled)


@pytest.mark.parametrize("fault", [tanh_gelu, large_epsilon, no_query_scale])
def test_planted_fault_in_the_code_shows(case, fault, monkeypatch):
    params, io = case
    fault(monkeypatch)
    features = io["logmel_c2ser_short"][None]
    run = jax.jit(WhisperEncoder(CFG).apply)
    output = run({"params": params}, features, np.array([124], np.int32))
    assert np.abs(output.frames - io["enc_c2ser_short"]).max() > 2 * ENCODER


def exchange_queries_and_values(params):
    attention = params["layers"]["self_attn"]
    attention["q_proj"], attention["v_proj"] = attention["v_proj"], attention["q_proj"]


def transpose_keys(params):
    projection = params["layers"]["self_attn"]["k_proj"]
    projection["kernel"] = projection["kernel"].swapaxes(1, 2)


def reverse_taps(params):
    params["conv2"]["kernel"] = params["conv2"]["kernel"][::-1]


def reverse_layers(params):
    params["layers"] = jax.tree.map(lambda leaf: leaf[::-1], params["layers"])


def exchange_norms(params):
    layers, one, other = params["layers"], "self_attn_layer_norm", "final_layer_norm"
    layers[one], layers[other] = layers[other], layers[one]


def shift_positions(params):
    params["positions"] = np.roll(params["positions"], 1, 0)


WEIGHT_FAULTS = [
    exchange_queries_and_values, transpose_keys, reverse_taps, reverse_layers, exchange_norms,
    shift_positions,
]  # fmt: skip


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_planted_fault_in_the_weights_shows(case, fault):
    params, io = case
    params = jax.tree.map(lambda leaf: leaf, params)
    fault(params)
    output = encode(CFG, params, io["logmel_c2ser_short"][None], [124])
    assert np.abs(output.frames - io["enc_c2ser_short"]).max() > 1e-3


def test_the_three_namings_hold_the_same_encoder():
    paths = [folder / name for folder in CASES for name in FILES if (folder / name).exists()]
    first = encoder_params(paths[0], CFG)
    for path in paths[1:]:
        jax.tree.map(np.testing.assert_array_equal, first, encoder_params(path, CFG))
