"""The stem's starting values: what the filters hear, what keeps the level, what the fit teaches."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig, LocalEncoder
from c2ser_jax.models.frontend_init import (
    FrontEndConfig,
    gabor_filters,
    initial_front_end,
    log_mel,
    to_hertz,
    to_mel,
)

ENCODER = Emotion2VecConfig(
    conv_layers=(ConvLayer(28, 400, 160), ConvLayer(20, 3, 2), ConvLayer(18, 3, 2)), conv_bias=True
)
CONFIG = FrontEndConfig(steps=60, rows=6, seconds=1.0, mel_bands=5)


def tone(hertz, *, amplitude=1.0, phase=0.0, samples=16000):
    """float32[1, N]."""
    time = np.arange(samples) / 16000.0
    return (amplitude * np.sin(2 * np.pi * hertz * time + phase)).astype(np.float32)[None]


def noises(count, seed):
    """Noise of changing colour and level, list of float32[N]."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        spectrum = np.fft.rfft(rng.standard_normal(24000))
        bumps = np.interp(
            np.arange(len(spectrum)), np.linspace(0, len(spectrum), 9), rng.normal(0, 1.5, 9)
        )
        wave = np.fft.irfft(spectrum * np.exp(bumps))
        level = np.exp(np.interp(np.arange(24000), np.linspace(0, 24000, 7), rng.normal(0, 1, 7)))
        out.append((wave * level).astype(np.float32))
    return out


@jax.jit
def stem_output(params, audio):
    return LocalEncoder(ENCODER).apply({"params": params}, audio)


heard_by = jax.jit(log_mel, static_argnums=(1, 2))


def unexplained(params, audio):
    """Share of the log-mel variance of float32[B, N] that no linear readout of the stem gives."""
    frames = np.asarray(stem_output(params, audio), np.float64).reshape(-1, 18)
    wanted = np.asarray(heard_by(audio, ENCODER, CONFIG), np.float64)
    wanted = wanted.reshape(len(frames), -1)
    wanted = (wanted - wanted.mean(0)) / wanted.std(0)
    frames = np.concatenate([frames, np.ones((len(frames), 1))], 1)
    error = wanted - frames @ np.linalg.lstsq(frames, wanted, rcond=None)[0]
    return np.square(error).mean()


def test_a_tone_is_loudest_in_its_own_band_whatever_its_phase():
    layer = ENCODER.conv_layers[0]
    kernel, _ = gabor_filters(layer, CONFIG)
    centres = to_hertz(np.linspace(to_mel(60.0), to_mel(7600.0), 8))[1:-1]
    for band, centre in enumerate(centres):
        for phase in (0.0, 0.9, 2.5):
            heard = kernel[:, 0].T @ tone(centre, phase=phase, samples=400)[0]
            rectified = np.maximum(heard[:24], 0.0).reshape(6, 4).sum(1)
            assert rectified.argmax() == band, (centre, phase)


def test_the_four_phases_of_a_band_cancel_and_no_band_hears_a_constant():
    kernel, bias = gabor_filters(ENCODER.conv_layers[0], CONFIG)
    chex.assert_shape(kernel, (400, 1, 28))
    bands = kernel[:, 0, :24].reshape(400, 6, 4)
    np.testing.assert_allclose(bands.sum(2), 0.0, atol=1e-6)
    np.testing.assert_allclose(bands[:, :, 0].sum(0), 0.0, atol=1e-4)
    assert np.abs(bands).max() > 0.01
    assert not kernel[:, 0, 24:].any() and not bias[:24].any() and bias[24:].all()


@pytest.mark.parametrize(("constants", "keeps"), [(4, True), (0, False)])
def test_constant_channels_keep_the_level_that_the_norm_throws_away(constants, keeps):
    cfg = dataclasses.replace(CONFIG, constants=constants, steps=0)
    params = initial_front_end(ENCODER, cfg, [], seed=0)
    audio = noises(1, seed=3)[0][None]
    quiet, loud = (np.asarray(stem_output(params, gain * audio)) for gain in (1, 4))
    difference = np.abs(quiet - loud).max()
    assert (difference > 0.05) == keeps, difference


def test_log_mel_frames_stand_under_the_stems_and_follow_pitch_and_level():
    cfg = dataclasses.replace(CONFIG, floor=1e-6)
    low, high, louder = (
        np.asarray(heard_by(tone(hertz, amplitude=amplitude), ENCODER, cfg))
        for hertz, amplitude in ((200.0, 5.0), (6000.0, 5.0), (200.0, 10.0))
    )
    chex.assert_shape(low, (1, ENCODER.frames(16000), 4 * 5))
    assert (np.argmax(low.reshape(-1, 5), 1) == 0).all()
    assert (np.argmax(high.reshape(-1, 5), 1) == 4).all()
    np.testing.assert_allclose((louder - low)[..., 0], np.log(4.0), atol=1e-3)
    click = np.zeros((1, 16000), np.float32)
    centre = 3 * ENCODER.hop_samples + ENCODER.receptive_samples // 2
    click[0, centre] = 1.0
    assert np.asarray(heard_by(click, ENCODER, cfg)).max((0, 2)).argmax() == 3


def test_the_fit_puts_the_log_mel_values_of_unheard_audio_into_the_stem():
    heard, unheard = noises(12, seed=0), np.stack(noises(6, seed=1))
    unheard /= unheard.std(1, keepdims=True)
    drawn = initial_front_end(ENCODER, dataclasses.replace(CONFIG, steps=0), [], seed=0)
    fitted = initial_front_end(ENCODER, CONFIG, heard, seed=0)
    before, after = unexplained(drawn, unheard), unexplained(fitted, unheard)
    assert after < 0.75 * before, (before, after)
    np.testing.assert_array_equal(fitted["conv_0"]["kernel"], drawn["conv_0"]["kernel"])


def test_the_fit_is_a_pure_function_of_audio_and_seed():
    cfg, audio = dataclasses.replace(CONFIG, steps=2), noises(3, seed=0)
    first, again = (initial_front_end(ENCODER, cfg, audio, seed=7) for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    other = initial_front_end(ENCODER, cfg, audio, seed=8)
    assert not np.array_equal(first["conv_1"]["kernel"], other["conv_1"]["kernel"])
    init = LocalEncoder(ENCODER).init
    names = set(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4000)))["params"])
    assert set(first) == names


def test_what_cannot_hold_a_filterbank_is_refused():
    with pytest.raises(UserError, match="conv_bias"):
        initial_front_end(dataclasses.replace(ENCODER, conv_bias=False), CONFIG, [], seed=0)
    with pytest.raises(UserError, match="4 channels per band"):
        gabor_filters(ConvLayer(30, 400, 160), CONFIG)
    with pytest.raises(UserError, match="no audio"):
        initial_front_end(ENCODER, CONFIG, [], seed=0)
    with pytest.raises(UserError, match="low_hz"):
        FrontEndConfig(low_hz=9000.0)
