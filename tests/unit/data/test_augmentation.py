"""Each augmentation does what its name and unit say, and the same for the same key."""

import numpy as np
import pytest

from c2ser_jax.data.augmentation import (
    AugmentConfig,
    add_noise,
    augment,
    change_speed,
    mix,
    mix_piece,
)
from c2ser_jax.errors import UserError


def tone(hertz=200.0, samples=16000):
    return np.sin(2 * np.pi * hertz * np.arange(samples) / 16000).astype(np.float32)


def power(audio):
    return float(np.mean(np.square(audio, dtype=np.float64)))


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0])
def test_noise_has_its_level_and_colour(snr, colour):
    added = add_noise(tone(), snr, colour, np.random.default_rng(0)) - tone()
    assert 10 * np.log10(power(tone()) / power(added)) == pytest.approx(snr, abs=0.05)
    spectrum = np.abs(np.fft.rfft(added)) ** 2
    slope = 10 * np.log10(spectrum[4000:8000].mean() / spectrum[400:800].mean())
    assert slope == pytest.approx(-10 * colour, abs=1.0)


def test_speed_moves_length_and_pitch():
    fast = change_speed(tone(200), 1.25)
    assert len(fast) == 12800
    assert np.abs(np.fft.rfft(fast)).argmax() * 16000 / 12800 == pytest.approx(250, abs=2)
    assert change_speed(tone(), 1.001) is not None and len(change_speed(tone(), 0.8)) == 20000
    np.testing.assert_array_equal(change_speed(tone(), 1.0), tone())


def test_mixing_covers_at_most_half_and_leaves_the_input_alone():
    cfg = AugmentConfig(mix_probability=1, mix_snr_db=(0, 0))
    own = tone()
    changed = []
    for seed in range(20):
        mixed = mix_piece(own, tone(333), cfg, np.random.default_rng(seed))
        changed.append(np.count_nonzero(mixed != own))
    np.testing.assert_array_equal(own, tone())
    assert max(changed) <= 8000 and len(set(changed)) > 15


def test_silence_is_mixed_with_nothing():
    np.testing.assert_array_equal(mix(np.zeros(5, np.float32), tone(200, 5), 0), np.zeros(5))
    np.testing.assert_array_equal(mix(tone(200, 5), np.zeros(5), 0), tone(200, 5))


def test_gain_stays_in_its_range_and_off_means_unchanged():
    gains = [
        power(augment(tone(), AugmentConfig(gain_db=6), np.random.default_rng(s))) / power(tone())
        for s in range(50)
    ]
    decibels = 10 * np.log10(gains)
    assert -6 <= decibels.min() < -4 and 4 < decibels.max() <= 6
    np.testing.assert_array_equal(
        augment(tone(), AugmentConfig(), np.random.default_rng(0)), tone()
    )
    assert not AugmentConfig().active and AugmentConfig(mix_probability=0.1).active


def test_probabilities_are_shares_of_the_rows():
    cfg = AugmentConfig(noise_probability=0.3)
    hits = [
        not np.array_equal(augment(tone(200, 800), cfg, np.random.default_rng(s)), tone(200, 800))
        for s in range(400)
    ]
    assert 0.24 < np.mean(hits) < 0.36


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_probability": 1.1},
        {"noise_snr_db": (20, 10)},
        {"speed": (0.1, 1.0)},
        {"gain_db": -1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=f"augment.{next(iter(wrong))}"):
        AugmentConfig(**wrong)
