"""Rate, pitch and loudness are what was put in, whatever the length and level of the audio."""

import json

import numpy as np
import pytest

from c2ser_jax.data.speaking_style import ATTRIBUTES, Style, StyleBounds, measure_style
from c2ser_jax.data.spoken_scenes import SpokenScenesConfig, speak_scenes
from c2ser_jax.errors import UserError


def buzz(hertz, seconds, level=0.3):
    """Ten harmonics of one pitch."""
    time = np.arange(round(seconds * 16000)) / 16000
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 11))
    return (level * wave).astype(np.float32)


@pytest.mark.parametrize("hertz", [75.0, 130.0, 260.0, 460.0])
def test_pitch_is_the_fundamental_of_voices_high_and_low(hertz):
    assert measure_style(buzz(hertz, 0.5), "a").pitch == pytest.approx(hertz, rel=0.02)


def test_rate_counts_units_per_voiced_second_alone():
    pause, voice = np.zeros(16000, np.float32), buzz(150.0, 1.0)
    for audio in (voice, np.concatenate([pause, voice, pause])):
        rate = measure_style(audio, "mana kado").rate
        assert rate == pytest.approx(4.0, rel=0.15)
    echo = np.concatenate([voice, buzz(150.0, 1.0, level=0.3e-2)])  # 40 dB fainter
    assert measure_style(echo, "mana kado").rate == pytest.approx(4.0, rel=0.15)
    assert measure_style(voice, "").rate is None and measure_style(voice, None).rate is None


def test_loudness_leaves_silence_out_and_follows_the_level():
    voice = buzz(150.0, 1.0)
    plain = measure_style(voice, "a").loudness
    assert plain == pytest.approx(10 * np.log10(np.mean(voice.astype(float) ** 2)), abs=0.1)
    padded = np.concatenate([np.zeros(40000, np.float32), voice])
    assert measure_style(padded, "a").loudness == pytest.approx(plain, abs=1.0)
    assert measure_style(voice * 0.5, "a").loudness == pytest.approx(plain - 6.02, abs=0.01)


@pytest.mark.parametrize("samples", [0, 2, 400, 1023, 2047, 6400])
def test_audio_of_any_length_can_be_measured(samples):
    found = measure_style(buzz(200.0, 1.0)[:samples], "hello")
    assert (found.loudness is None) == (samples == 0)
    if samples >= 1023:
        assert found.pitch == pytest.approx(200.0, rel=0.05)


def test_what_has_no_voice_has_neither_pitch_nor_rate():
    noise = 0.1 * np.random.default_rng(0).normal(size=8000).astype(np.float32)
    for audio in (noise, np.full(8000, 0.1, np.float32)):
        found = measure_style(audio, "mana")
        assert (found.rate, found.pitch) == (None, None)
        assert found.loudness == pytest.approx(-20.0, abs=0.2)
    assert measure_style(np.zeros(8000, np.float32), "mana") == Style(None, None, None)


def test_measured_words_are_those_that_a_speaker_was_told_to_follow():
    cfg = SpokenScenesConfig(speakers=2, utterances=8, difficulty=0.3)
    items = speak_scenes(cfg)
    styles = [measure_style(audio, row.text) for row, audio in items]
    bounds = StyleBounds.of(styles, [row.speaker for row, _ in items])
    for name in ATTRIBUTES:
        told = [row.extra[name] for row, _ in items]
        found = [
            bounds.levels(style, row.speaker)[name]
            for style, (row, _) in zip(styles, items, strict=True)
        ]
        right = np.mean([one == other for one, other in zip(told, found, strict=True)])
        majority = max(told.count(level) for level in set(told)) / len(told)
        assert right > majority + 0.2, (name, right, majority)
        assert {"low", "high"} not in [{a, b} for a, b in zip(told, found, strict=True)], name


def test_bounds_survive_a_file_and_others_get_a_sentence(tmp_path):
    styles = [Style(float(v), 100.0 + v, -20.0 - v) for v in range(10)]
    bounds = StyleBounds.of(styles, ["a"] * 9 + [None])
    bounds.save(tmp_path / "bounds.json")
    assert StyleBounds.load(tmp_path / "bounds.json") == bounds
    assert bounds.by_speaker.keys() == {"", "a"}
    with pytest.raises(UserError, match="no file of style bounds"):
        StyleBounds.load(tmp_path / "none.json")
    for wrong in ("[1]", '{"a": 3}', '{"a": {"rate": ["x", 2]}}', "{"):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(UserError, match="write .* again"):
            StyleBounds.load(tmp_path / "wrong.json")
    assert json.loads((tmp_path / "bounds.json").read_text()).keys() == {"", "a"}
