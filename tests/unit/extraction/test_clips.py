"""Windows of long clips keep every frame once; failures and order survive the threads."""

import dataclasses

import numpy as np
import pytest

from c2ser_jax.data.manifest import Utterance
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import Clip, Cutting, Failure, decode, estimate_lengths
from c2ser_jax.models.emotion2vec import ConvLayer
from tests.tiny_models import TINY, voice, write_wav


def hearing(*conv_layers):
    return dataclasses.replace(
        TINY, conv_layers=tuple(ConvLayer(8, *sizes) for sizes in conv_layers)
    )


MODELS = {
    320: TINY,
    640: hearing((400, 160), (3, 2), (3, 2)),  # as configs/emodb/loso.py
    333: hearing((40, 37), (11, 9)),
}


@pytest.mark.parametrize("hop", MODELS)
@pytest.mark.parametrize("window, overlap", [(2.0, 0.5), (3.0, 0.1), (2.5, 1.25)])
def test_kept_frames_cover_the_clip_once_and_stay_off_the_seams(window, overlap, hop):
    model, cutting = MODELS[hop], Cutting(window, overlap)
    assert model.hop_samples == hop
    size, shared = cutting.samples(model)
    each = model.frames(size)
    for extra in (1, hop - 1, hop, hop + 1, 2 * size - 7, 2 * size + 320, 6 * size + 1234):
        samples = size + extra
        lengths, starts = cutting.segment_lengths(samples, model), cutting.starts(samples, model)
        assert all(start % hop == 0 for start in starts) and starts[-1] + lengths[-1] == samples
        covered = 0
        for i, length in enumerate(lengths):
            kept = cutting.kept(i, samples, model)
            assert kept.offset == covered
            assert 0 <= kept.first < kept.last <= model.frames(length) <= each
            assert starts[i] == hop * (kept.offset - kept.first)
            margin = (shared + hop - model.receptive_samples) // hop // 2
            assert i == 0 or kept.first >= margin
            assert i == len(lengths) - 1 or kept.last <= each - margin
            covered += kept.last - kept.first
        assert covered == model.frames(samples)


def test_windows_hold_the_samples_of_their_frames():
    audio = np.arange(5 * 16000, dtype=np.float32) / 80_000
    segments = list(decode([Clip("a", audio=audio)], [0], TINY, Cutting(2.0, 0.5), 1))
    for segment in segments:
        assert segment.windows == len(segments) > 1
        first = round(float(segment.audio[0]) * 80_000) // TINY.hop_samples
        assert first + segment.kept.first == segment.kept.offset
        np.testing.assert_allclose(segment.statistics, [audio.mean(), audio.var()], rtol=1e-4)


def test_files_arrays_and_repeated_files_keep_their_places(tmp_path):
    file = write_wav(tmp_path / "a.wav", voice(0.5))
    clips = [
        Clip.of_file(str(file)),
        Clip.of_array("b", voice(0.7), 16000),
        Clip.of_file(str(tmp_path / "no.wav")),
        Clip.of(Utterance("c", str(file), start=0.1, end=0.3)),
        Clip.of_file(str(file)),
    ]
    lengths, failures = estimate_lengths(clips, 2)
    assert lengths == {0: 8000, 1: 11200, 3: 3200, 4: 8000}
    assert [(f.index, f.reason) for f in failures] == [(2, "missing")]
    found = {s.index: s for s in decode(clips, [4, 3, 1, 0], TINY, Cutting(), 2)}
    assert sorted(found) == [0, 1, 3, 4]
    assert {i: len(s.audio) for i, s in found.items() if not isinstance(s, Failure)} == lengths


def test_the_estimate_is_never_shorter_than_the_resampled_audio(tmp_path):
    for rate in (8000, 11025, 22050, 44100, 48000):
        for samples in (4001, 5003, 9999):
            noise = np.random.default_rng(0).normal(size=samples).astype(np.float32) * 0.1
            clip = Clip.of_file(str(write_wav(tmp_path / "x.wav", noise, rate)))
            [segment] = decode([clip], [0], TINY, Cutting(), 1)
            assert not isinstance(segment, Failure)
            assert len(segment.audio) <= clip.estimate() <= len(segment.audio) + 4


def test_impossible_windows_are_refused():
    with pytest.raises(UserError, match="overlap"):
        Cutting(10.0, 8.0).samples(TINY)
    with pytest.raises(UserError, match="hear 1360 samples"):
        Cutting(10.0, 0.06).samples(MODELS[640])
