"""A checkpoint fairseq's trainer wrote: the student's features and its EMA teacher's."""

import dataclasses

import numpy as np
import pytest

from tests.golden_roots import golden_cases
from tests.parity.golden_weights import (
    config_from,
    encode,
    encoder_params,
    load_checkpoint,
    read_arrays,
)


@pytest.fixture(
    scope="module", params=golden_cases("emotion2vec/training_checkpoint_tiny"), ids=str
)
def case(request):
    checkpoint = load_checkpoint(request.param / "checkpoint_last.pt")
    state = checkpoint["model"]
    teacher = {name: value for name, value in state["_ema"].items()}
    cfg = config_from(checkpoint["cfg"]["model"], normalize_waveform=True)
    return cfg, state, {**state, **teacher}, read_arrays(request.param)


def features(cfg, state, audio):
    output = encode(cfg, encoder_params(state, cfg), audio)
    return np.concatenate([output.tokens[0], output.frames[0]])


def test_student_features_equal_upstream(case):
    cfg, student, _, io = case
    found = features(cfg, student, io["wav"])
    np.testing.assert_allclose(found[10:], io["x"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1:], io["x_with_extra_tokens"][1:], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[0], io["x_with_extra_tokens"][0], rtol=0, atol=1e-3)
    normalised = features(dataclasses.replace(cfg, normalize_waveform=False), student,
                        io["wav_normalised"])  # fmt: skip
    np.testing.assert_allclose(normalised[10:], io["x"], rtol=0, atol=1e-4)


def test_teacher_features_equal_upstream_and_not_the_students(case):
    cfg, student, teacher, io = case
    found, wanted = features(cfg, teacher, io["wav"]), io["teacher_x_with_extra_tokens"]
    np.testing.assert_allclose(found[1:], wanted[1:], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-3)
    assert np.abs(features(cfg, student, io["wav"])[1:] - wanted[1:]).max() > 2e-4
