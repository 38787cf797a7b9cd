"""Reading audio: formats, rates, channels, checksums, and one reason for every way to be bad."""

import io
import pickle

import numpy as np
import pytest
import soundfile
import soxr

from c2ser_jax.data import audio as audio_module
from c2ser_jax.data.audio import (
    BadAudio,
    RunningScan,
    audio_sha256,
    from_array,
    probe_audio,
    read_audio,
    scan_audio,
    stream_audio,
)
from c2ser_jax.errors import UserError


def noise(samples, channels=1, seed=0):
    shape = samples if channels == 1 else (samples, channels)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def reason_of(path, **options):
    with pytest.raises(BadAudio) as caught:
        scan_audio(path, **options)
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_integer_and_float_files_read_to_the_same_scale(tmp_path, subtype):
    sound = noise(4000)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype=subtype)
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15}.get(subtype, 2**-22)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sound, atol=step)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_files_keep_length_and_loudness(tmp_path, suffix):
    sound = np.sin(np.arange(32000) * 0.1).astype(np.float32) * 0.3
    soundfile.write(tmp_path / f"a.{suffix}", sound, 16000)
    read = read_audio(tmp_path / f"a.{suffix}")
    assert len(read) == len(sound)
    assert np.std(read[4000:-4000]) == pytest.approx(np.std(sound[4000:-4000]), rel=0.02)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 192000])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_blocks_give_the_samples_of_the_whole_file(tmp_path, monkeypatch, rate, channels):
    sound = noise(rate // 3 + 7, channels)
    soundfile.write(tmp_path / "a.wav", sound, rate, subtype="FLOAT")
    mono = sound if channels == 1 else sound.mean(axis=1)
    expected = soxr.resample(mono, rate, 16000, quality="HQ")
    monkeypatch.setattr(audio_module, "_BLOCK_VALUES", 1000)
    blocks = list(stream_audio(tmp_path / "a.wav"))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    monkeypatch.setattr(audio_module, "_BLOCK_VALUES", 1 << 30)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav"), expected)


def test_one_channel_can_be_read_instead_of_the_mean(tmp_path):
    sound = noise(2000, 2)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", channel=2), sound[:, 1])
    assert not np.array_equal(read_audio(tmp_path / "a.wav"), sound[:, 1])
    assert reason_of(tmp_path / "a.wav", channel=3) == "unreadable"


def test_a_piece_is_that_part_of_the_file(tmp_path):
    sound = noise(16000)
    soundfile.write(tmp_path / "a.flac", sound, 16000, subtype="PCM_24")
    piece = read_audio(tmp_path / "a.flac", start_seconds=0.25, end_seconds=0.5)
    np.testing.assert_array_equal(piece, read_audio(tmp_path / "a.flac")[4000:8000])
    assert reason_of(tmp_path / "a.flac", start_seconds=2.0) == "empty"


def test_scan_agrees_with_numpy_whatever_the_offset(tmp_path):
    sound = (0.8 + 1e-4 * noise(50000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    scan = scan_audio(tmp_path / "a.wav")
    exact = sound.astype(np.float64)
    assert (scan.samples, scan.seconds) == (50000, 3.125)
    assert scan.mean == pytest.approx(exact.mean(), abs=1e-12)
    assert scan.variance == pytest.approx(exact.var(), rel=1e-9)
    running = RunningScan("pieces")
    for start in range(0, 50000, 333):
        running.add(sound[start : start + 333])
    assert running.result().variance == pytest.approx(exact.var(), rel=1e-9)
    assert running.result().sha256 == scan.sha256 == audio_sha256(sound)


def test_checksum_is_that_of_the_pcm(tmp_path):
    import hashlib

    pcm = np.random.default_rng(1).integers(-32768, 32768, 5000).astype("<i2")
    soundfile.write(tmp_path / "a.wav", pcm, 16000)
    expected = hashlib.sha256(pcm.tobytes()).hexdigest()
    assert scan_audio(tmp_path / "a.wav").sha256 == expected
    pcm[17] ^= 1
    assert hashlib.sha256(pcm.tobytes()).hexdigest() != expected


def test_missing_empty_and_foreign_files_have_their_reason(tmp_path):
    assert reason_of(tmp_path / "none.wav") == "missing"
    assert reason_of(tmp_path / "none.wav" / "below.wav") == "missing"
    assert reason_of(str(tmp_path) + "/nul\0.wav") == "missing"
    (tmp_path / "zero.wav").write_bytes(b"")
    assert reason_of(tmp_path / "zero.wav") == "empty"
    soundfile.write(tmp_path / "headeronly.wav", np.zeros(0), 16000)
    assert reason_of(tmp_path / "headeronly.wav") == "empty"
    (tmp_path / "text.wav").write_text("not a recording")
    assert reason_of(tmp_path / "text.wav") == "unreadable"
    assert reason_of(tmp_path) == "unreadable"


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_cut_off_files_are_unreadable(tmp_path, suffix, capfd):
    soundfile.write(tmp_path / "whole", noise(48000), 16000, format=suffix)
    data = (tmp_path / "whole").read_bytes()
    for share in (0.02, 0.3, 0.7):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[: int(len(data) * share)])
        assert reason_of(path) == "unreadable", share
    capfd.readouterr()  # the mp3 decoder writes to stderr by itself


def test_a_wav_of_unknown_length_is_not_cut_off(tmp_path):
    """Programs that write to a pipe leave the length at its maximum."""
    soundfile.write(tmp_path / "a.wav", noise(4000), 16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(bytes(data))
    assert scan_audio(tmp_path / "a.wav").samples == 4000


def test_a_flac_of_unknown_length_reads_to_its_end(tmp_path):
    """Encoders that write to a pipe leave the number of samples at 0."""
    soundfile.write(tmp_path / "a.flac", noise(30_000), 16000)
    whole = read_audio(tmp_path / "a.flac")
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # STREAMINFO: the 36 bits of the sample count
    data[22:26] = b"\0\0\0\0"
    (tmp_path / "a.flac").write_bytes(bytes(data))
    assert soundfile.info(tmp_path / "a.flac").frames > 1 << 60
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac"), whole)
    assert probe_audio(tmp_path / "a.flac").frames == 30_000
    piece = read_audio(tmp_path / "a.flac", start_seconds=0.5, end_seconds=1.0)
    np.testing.assert_array_equal(piece, whole[8000:16_000])


def test_too_short_is_less_than_one_frame(tmp_path):
    for samples, short in ((1, True), (160, True), (399, True), (400, False)):
        soundfile.write(tmp_path / "a.wav", noise(samples), 16000)
        if short:
            assert reason_of(tmp_path / "a.wav") == "too short"
        else:
            assert len(read_audio(tmp_path / "a.wav")) == 400
    soundfile.write(tmp_path / "a.wav", noise(1199), 48000)  # 399.67 samples at 16 kHz
    assert scan_audio(tmp_path / "a.wav").samples == 400


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_not_finite_refuses_the_file(tmp_path, value):
    sound = noise(5000)
    sound[4321] = value
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    assert reason_of(tmp_path / "a.wav") == "not finite"


def test_silence_is_bad_only_when_asked(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(5000), 16000)
    assert scan_audio(tmp_path / "a.wav").variance == 0
    assert reason_of(tmp_path / "a.wav", allow_silent=False) == "silent"
    with pytest.raises(BadAudio, match="silence"):
        read_audio(tmp_path / "a.wav", allow_silent=False)
    soundfile.write(tmp_path / "a.wav", np.r_[np.zeros(4999), 2**-15], 16000)
    assert scan_audio(tmp_path / "a.wav", allow_silent=False).samples == 5000


def test_absurd_rates_are_refused_before_resampling(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(5000), 1)
    assert reason_of(tmp_path / "a.wav") == "unreadable"


def test_open_files_read_like_paths(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(4000), 22050)
    memory = io.BytesIO((tmp_path / "a.wav").read_bytes())
    np.testing.assert_array_equal(read_audio(memory), read_audio(tmp_path / "a.wav"))
    info = probe_audio(tmp_path / "a.wav")
    assert (info.rate, info.channels, info.frames) == (22050, 1, 4000)


def test_arrays_of_any_type_become_16_khz_mono():
    pcm = np.random.default_rng(2).integers(-30000, 30000, (2, 4800)).astype(np.int16)
    expected = soxr.resample((pcm.mean(axis=0) / 32768).astype(np.float32), 48000, 16000)
    np.testing.assert_allclose(from_array(pcm, 48000), expected, atol=1e-6)
    np.testing.assert_allclose(from_array(pcm.T, 48000), expected, atol=1e-6)
    unsigned = np.full(800, 192, np.uint8)
    np.testing.assert_array_equal(from_array(unsigned, 16000), np.full(800, 0.5, np.float32))


@pytest.mark.parametrize(
    ("array", "rate"),
    [
        (np.zeros((2, 3, 400)), 16000),
        (np.zeros(800), 0),
        (np.zeros(800), 44.1),
        (np.array(["a"] * 800), 16000),
        (np.full(800, np.nan), 16000),
        (np.zeros(30), 16000),
        (np.zeros(0), 16000),
    ],
)
def test_unusable_arrays_are_refused_with_a_sentence(array, rate):
    with pytest.raises(UserError, match="my array"):
        from_array(array, rate, name="my array")


def test_errors_survive_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(BadAudio("a.wav", "empty", "the file has 0 bytes")))
    assert (error.reason, str(error)) == ("empty", "a.wav: the file has 0 bytes")
