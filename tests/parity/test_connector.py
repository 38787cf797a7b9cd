"""Every stage of the speech part of C2SER against upstream's, in both input modes."""

import dataclasses

import jax
import numpy as np
import pytest

from c2ser_jax.models import connector, prenorm
from c2ser_jax.models.connector import Connector, ConnectorConfig
from c2ser_jax.models.whisper import WhisperEncoderConfig
from conversions.reader import open_checkpoint
from tests.golden_roots import golden_cases
from tests.parity.speech_weights import arrays, compiled_connector, encode, speech_params

ENCODER = WhisperEncoderConfig(width=48, depth=2, heads=4, mlp_width=192, published_padding=True)
CFG = ConnectorConfig(
    encoder_width=48, width=48, depth=4, heads=4, mlp_width=160, output_width=64
)  # fmt: skip
CHECKPOINTS = {  # outputs: (weights, inputs)
    "io_single_full": ("checkpoint.pt", "io_single_full"),
    "io_single_ssl_only": ("checkpoint.pt", "io_single_ssl_only"),
    "io_batch3_full": ("checkpoint.pt", "io_batch3_full"),
    "io_batch3_ssl_only": ("checkpoint.pt", "io_batch3_ssl_only"),
    "io_single_full_bf16ckpt": ("checkpoint_bf16.pt", "io_single_full"),
}
CASES = [
    (folder, name)
    for folder in golden_cases("c2ser_llm/c2ser_forward")
    for name, (weights, _) in CHECKPOINTS.items()
    if (folder / weights).exists() and (folder / f"{name}.npz").exists()
]
TOLERANCE = 2e-4


def load(folder, name):
    weights, inputs = CHECKPOINTS[name]
    io = {k: v for k, v in arrays(folder / f"{inputs}.npz").items() if k.startswith("in/")}
    io |= {k: v for k, v in arrays(folder / f"{name}.npz").items() if k.startswith("out/")}
    return speech_params(folder / weights, ENCODER, CFG), io


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def case(request):
    return load(*request.param), "ssl_only" in request.param[1]


@pytest.fixture(scope="module")
def full():
    """The inputs and outputs of one utterance in the full mode; a fresh clone has it, too."""
    return load(*next(case for case in CASES if case[1] == "io_single_full_bf16ckpt"))


def run(params, io, ssl_only, tokens="in/ssl_raw"):
    """(encoder output or None, connector output) from the log-mel features and tokens."""
    frames = mask = encoded = None
    if not ssl_only:
        encoded = encode(ENCODER, params["encoder"], io["in/feats"], io["in/feats_lengths"])
        frames, mask = encoded.frames, encoded.mask
    apply = compiled_connector(CFG, ssl_only)
    return encoded, apply({"params": params["connector"]}, io[tokens], frames, mask)


def assert_near(found, wanted, mask, name):
    assert found.shape == wanted.shape, name
    real = np.asarray(mask)
    np.testing.assert_allclose(
        np.asarray(found)[real], wanted[real], rtol=0, atol=TOLERANCE, err_msg=name
    )


def test_every_stage_equals_upstream(case):
    (params, io), ssl_only = case
    encoded, output = run(params, io, ssl_only)
    layers, mask = output.layers, output.mask
    if encoded is not None:
        assert np.array_equal(encoded.mask[:, None], io["out/encoder_mask"])
        assert_near(encoded.frames, io["out/encoder_out"], encoded.mask, "encoder_out")
        kept = layers["down_sample_mask"]
        assert np.array_equal(kept[:, None], io["out/downsample_mask"])
        assert_near(layers["down_sample"], io["out/downsample_out"], kept, "downsample_out")
    assert np.array_equal(mask.sum(1), io["out/connector_in_lens"])
    assert np.array_equal(mask[:, None], io["out/connector_mask"])
    assert_near(layers["joined"], io["out/connector_in"], mask, "connector_in")
    assert_near(layers["transformer"], io["out/connector_out"], mask, "connector_out")
    assert_near(output.embeddings, io["out/speech_embeds"], mask, "speech_embeds")


def test_tokens_padded_beforehand_give_the_same(full):
    params, io = full
    _, raw = run(params, io, True)
    _, padded = run(params, io, True, "in/ssl_vecs")
    np.testing.assert_array_equal(raw.embeddings, padded.embeddings)
    assert np.abs(raw.embeddings[:, :10] - io["out/speech_embeds"][:, :10]).max() > 1e-2


def test_marks_are_the_last_two_rows_of_the_speech_table(full):
    params, io = full
    folder = next(folder for folder, name in CASES if name == "io_single_full_bf16ckpt")
    table = open_checkpoint(folder / "checkpoint_bf16.pt").tree["speech_token_emded.weight"].read()
    _, output = run(params, io, True)
    np.testing.assert_array_equal(output.begin, table[17].astype(np.float32))
    np.testing.assert_array_equal(output.end, table[18].astype(np.float32))
    for folder, name in CASES:
        params, io = load(folder, name)
        if "out/inputs_embeds" in io:  # the wider collection: prompt, begin, speech, end, labels
            before = io["in/prompt"].shape[1]
            behind = before + 1 + io["out/speech_embeds"].shape[1]
            found = io["out/inputs_embeds"][:, (before, behind)]
            wanted = np.broadcast_to(params["connector"]["speech_marks"], found.shape)
            np.testing.assert_array_equal(found, wanted)


def test_the_positions_come_from_the_checkpoint(full):
    params, io = full
    computed = connector.interleaved_sinusoids(None, (5000, 48), np.float32)
    stored = params["connector"]["speech_transformer"]["positions"]
    assert 1e-4 < np.abs(stored - computed).max() < 4e-3  # bfloat16-rounded in the file
    encoder = params["encoder"]["positions"]
    assert encoder.shape == (1500, 48) and np.abs(encoder).max() > 0.1


def last_is_not_normalised(monkeypatch):
    monkeypatch.setattr(connector, "EPSILON", 1.0)


def centred_convolutions(monkeypatch):
    original = connector.strided_conv

    def shifted(x, kernel, *, stride):
        return original(jax.numpy.roll(x, -1, 1), kernel, stride=stride)

    monkeypatch.setattr(connector, "strided_conv", shifted)


def gelu_blocks(monkeypatch):
    monkeypatch.setattr(prenorm.nn, "relu", prenorm.gelu)


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        (last_is_not_normalised, "transformer"),
        (centred_convolutions, "down_sample"),
        (gelu_blocks, "transformer"),
        (None, "down_sample"),
        (None, "transformer"),
    ],
)
def test_planted_fault_in_the_code_shows(full, fault, stage, monkeypatch):
    params, io = full
    if fault is not None:
        fault(monkeypatch)
    apply = jax.jit(lambda *args: Connector(CFG).apply(*args, return_layers=True))
    mask = io["out/encoder_mask"][:, 0]
    output = apply({"params": params["connector"]}, io["in/ssl_raw"], io["out/encoder_out"], mask)
    wanted = {"transformer": "out/connector_out", "down_sample": "out/downsample_out"}[stage]
    deviation = np.abs(output.layers[stage] - io[wanted]).max()
    assert deviation < TOLERANCE if fault is None else deviation > 5 * TOLERANCE


def reverse_blocks(params):
    transformer = params["speech_transformer"]
    transformer["encoders"] = jax.tree.map(lambda leaf: leaf[::-1], transformer["encoders"])


def reverse_taps(params):
    conv = params["down_sample"]["conv_1"]
    conv["kernel"] = conv["kernel"][::-1]


def exchange_convolutions(params):
    convs = params["down_sample"]
    convs["conv_1"], convs["conv_2"] = convs["conv_2"], convs["conv_1"]


def drop_query_bias(params):
    projection = params["speech_transformer"]["encoders"]["self_attn"]["q_proj"]
    projection["bias"] = np.zeros_like(projection["bias"])


def shift_positions(params):
    transformer = params["speech_transformer"]
    transformer["positions"] = np.roll(transformer["positions"], 1, 0)


def reverse_projection_bias(params):
    params["speech_llama_proj"]["bias"] = params["speech_llama_proj"]["bias"][::-1]


WEIGHT_FAULTS = [
    reverse_blocks, reverse_taps, exchange_convolutions, drop_query_bias, shift_positions,
    reverse_projection_bias,
]  # fmt: skip


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_planted_fault_in_the_weights_shows(full, fault):
    params, io = full
    wrong = jax.tree.map(lambda leaf: leaf, params["connector"])
    fault(wrong)
    _, output = run(params | {"connector": wrong}, io, False)
    assert np.abs(output.embeddings - io["out/speech_embeds"]).max() > 1e-3


def test_tokens_behind_the_frames_would_show(full):
    params, io = full
    _, output = run(params, io, False)
    swapped = np.roll(np.asarray(output.layers["joined"]), 10, 1)
    assert np.abs(swapped - io["out/connector_in"]).max() > 1e-2


def test_the_published_encoder_option_is_what_equals_upstreams_batch():
    for folder, name in CASES:
        if name == "io_batch3_full":
            params, io = load(folder, name)
            other = dataclasses.replace(ENCODER, published_padding=False)
            ours = encode(other, params["encoder"], io["in/feats"], io["in/feats_lengths"])
            mask = io["out/encoder_mask"][:, 0]
            deviation = np.abs(np.asarray(ours.frames) - io["out/encoder_out"]).max(-1)
            by_row = np.where(mask, deviation, 0).max(1)
            assert by_row[0] < TOLERANCE and by_row[1] < TOLERANCE < 1e-2 < by_row[2]
