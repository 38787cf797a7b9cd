"""Audio for inference: order kept, long recordings whole through their windows, memory bounded."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from c2ser_jax.data import loading
from c2ser_jax.data.audio import audio_sha256, read_audio
from c2ser_jax.data.loading import (
    Failed,
    Loaded,
    iterate_audio,
    load_array,
    window_samples,
    window_starts,
)
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.errors import UserError


def noise(samples, seed=0):
    return (0.1 + np.random.default_rng(seed).uniform(-0.4, 0.4, samples)).astype(np.float32)


def write(path, samples, rate=16000, channels=1, seed=0):
    sound = noise(samples * channels, seed).reshape(samples, channels)
    soundfile.write(path, sound, rate, subtype="FLOAT")
    return Utterance(path.stem, str(path))


def stitch(windows):
    return np.concatenate([w.audio[w.window.overlap_samples :] for w in windows])


def test_utterances_come_in_order_with_failures_in_their_place(tmp_path):
    rows = [write(tmp_path / f"{i}.wav", 1000 + 37 * i, seed=i) for i in range(9)]
    rows.insert(4, Utterance("gone", str(tmp_path / "gone.wav")))
    got = list(iterate_audio(rows, threads=3))
    assert [item.utterance.id for item in got] == [row.id for row in rows]
    for item, row in zip(got, rows, strict=True):
        if isinstance(item, Failed):
            assert (item.utterance.id, item.reason) == ("gone", "missing")
            assert "gone.wav" in item.message
            continue
        audio = read_audio(row.path)
        np.testing.assert_array_equal(item.audio, audio)
        exact = audio.astype(np.float64)
        np.testing.assert_allclose(item.statistics, [exact.mean(), exact.var()], rtol=1e-9)
        assert item.window is None and item.seconds == len(audio) / 16000
        assert item.sha256 == audio_sha256(audio)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(("window", "overlap"), [(2.0, 0.5), (3.0, 0.0), (1.0, 0.5)])
def test_windows_cover_a_long_recording_exactly(tmp_path, rate, window, overlap):
    row = write(tmp_path / "long.wav", rate * 11 + 123, rate, channels=2)
    whole = read_audio(row.path)
    got = list(iterate_audio([row], window_seconds=window, overlap_seconds=overlap))
    assert len(got) > 3 and all(isinstance(item, Loaded) for item in got)
    np.testing.assert_array_equal(stitch(got), whole)
    size = round(window * 16000)
    for i, item in enumerate(got):
        place = item.window
        assert (place.index, place.count, place.last) == (i, len(got), i == len(got) - 1)
        assert place.start_samples % 320 == 0 and place.total_samples == len(whole)
        assert size - 320 < len(item.audio) <= size
        assert place.overlap_samples >= (0 if i == 0 else round(overlap * 16000))
        start = place.start_samples
        np.testing.assert_array_equal(item.audio, whole[start : start + len(item.audio)])
        exact = whole.astype(np.float64)
        np.testing.assert_allclose(item.statistics, [exact.mean(), exact.var()], rtol=1e-9)
    memory = list(load_array(row, whole, window_seconds=window, overlap_seconds=overlap))
    for item, other in zip(got, memory, strict=True):
        np.testing.assert_array_equal(item.audio, other.audio)
        assert item.window == other.window and item.sha256 == other.sha256


@pytest.mark.parametrize("hop", [320, 640, 333])
@pytest.mark.parametrize("extra", [0, 1, 319, 320, 321, 15_999, 16_000, 16_001])
def test_window_starts_reach_the_end_at_every_length(extra, hop):
    size, overlap = window_samples(2.0, 1.0, hop)
    samples = size + 1 + extra
    starts = window_starts(samples, size, overlap, hop)
    assert starts[0] == 0 and all(start % hop == 0 for start in starts)
    assert samples - size <= starts[-1] < samples - size + hop
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= size - overlap).all()


def test_windows_start_on_the_frames_of_the_model_that_hears_them(tmp_path):
    row = write(tmp_path / "a.wav", 100_000)
    sizes = {"window_seconds": 2.0, "overlap_seconds": 0.5}
    whole = read_audio(row.path)
    for given in (
        iterate_audio([row], hop_samples=640, **sizes),
        load_array(row, whole, hop_samples=640, **sizes),
    ):
        windows = list(given)
        assert [w.window.start_samples for w in windows] == [0, 24_320, 48_640, 68_480]
        np.testing.assert_array_equal(stitch(windows), whole)


def test_an_utterance_of_exactly_one_window_is_whole(tmp_path):
    row = write(tmp_path / "a.wav", 32_000)
    (item,) = iterate_audio([row], window_seconds=2.0, overlap_seconds=0.5)
    assert isinstance(item, Loaded) and item.window is None
    longer = write(tmp_path / "b.wav", 32_001)
    assert len(list(iterate_audio([longer], window_seconds=2.0, overlap_seconds=0.5))) == 2


def test_a_defect_at_the_end_fails_the_recording_before_its_first_window(tmp_path):
    sound = noise(16_000 * 8)
    sound[-5] = np.nan
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    row = Utterance("a", str(tmp_path / "a.wav"))
    (item,) = iterate_audio([row], window_seconds=2.0, overlap_seconds=0.5)
    assert isinstance(item, Failed) and item.reason == "not finite"


def test_a_recording_that_shrinks_between_the_two_looks_fails_alone(tmp_path, monkeypatch):
    rows = [write(tmp_path / "a.wav", 16_000 * 8), write(tmp_path / "b.wav", 4000)]
    look = loading._look

    def replaced(utterance, *rest):
        found = look(utterance, *rest)
        if utterance.id == "a":
            write(tmp_path / "a.wav", 16_000 * 3)
        return found

    monkeypatch.setattr(loading, "_look", replaced)
    *windows, failed, after = iterate_audio(rows, window_seconds=2.0, overlap_seconds=0.5)
    assert len(windows) == 1 and isinstance(after, Loaded) and after.utterance.id == "b"
    assert isinstance(failed, Failed) and failed.reason == "unreadable"
    assert "shorter than it was" in failed.message


def test_silence_fails_unless_allowed(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 16000)
    row = Utterance("a", str(tmp_path / "a.wav"))
    (item,) = iterate_audio([row])
    assert isinstance(item, Failed) and item.reason == "silent"
    (item,) = iterate_audio([row], allow_silent=True)
    assert isinstance(item, Loaded) and not item.audio.any()


def test_pieces_and_channels_of_a_row_are_honoured(tmp_path):
    path = tmp_path / "a.wav"
    write(path, 16_000, channels=2)
    row = Utterance("a", str(path), start=0.25, end=0.75, extra={"channel": 2})
    (item,) = iterate_audio([row])
    assert isinstance(item, Loaded)
    expected = read_audio(path, start_seconds=0.25, end_seconds=0.75, channel=2)
    np.testing.assert_array_equal(item.audio, expected)


def test_a_long_recording_needs_the_memory_of_a_window(tmp_path):
    path = tmp_path / "long.wav"
    piece = (noise(48_000 * 10) * 32767).astype(np.int16)
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(18):  # 3 minutes: 69 MB as float32 pairs, 11.5 MB at 16 kHz mono
            file.write(np.stack([piece, piece // 2], axis=1))
    row = Utterance("long", str(path))
    tracemalloc.start()
    try:
        seconds = sum(
            len(item.audio) - item.window.overlap_samples
            for item in iterate_audio([row], window_seconds=5.0, threads=1)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seconds == 180 * 16_000
    assert peak < 11e6, peak


def test_reading_ahead_is_bounded_and_stops_when_the_caller_stops(tmp_path, monkeypatch):
    rows = [write(tmp_path / f"{i}.wav", 1000) for i in range(40)]
    looked = []
    lock = threading.Lock()
    look = loading._look

    def counted(utterance, *rest):
        with lock:
            looked.append(utterance.id)
        return look(utterance, *rest)

    monkeypatch.setattr(loading, "_look", counted)
    items = iterate_audio(rows, threads=2)
    next(items)
    time.sleep(0.3)  # time enough to read all 40
    assert 1 <= len(looked) <= 5
    items.close()


@pytest.mark.parametrize(("window", "overlap"), [(0.5, 0.0), (4.0, 3.0), (4.0, -1.0)])
def test_impossible_windows_are_refused(window, overlap):
    with pytest.raises(UserError, match="not possible"):
        list(iterate_audio([], window_seconds=window, overlap_seconds=overlap))
