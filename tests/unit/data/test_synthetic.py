"""The embedded data are the same bytes everywhere, quick, and neither trivial nor hopeless."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from c2ser_jax.data.manifest import read_manifest
from c2ser_jax.data.sources import FileSource, MemorySource
from c2ser_jax.data.synthetic import LEXICON, PROSODY, SyntheticConfig, synthesize, write_synthetic
from c2ser_jax.errors import UserError

SMALL = SyntheticConfig(speakers=2, utterances=2, emotions=("sad", "angry"), unlabelled=1)


def test_the_samples_are_the_same_on_every_machine():
    """9 bits of each sample, so that another machine's last digit of a cosine cannot matter."""
    digest = hashlib.sha256()
    for utterance, audio in synthesize(SMALL):
        digest.update(utterance.id.encode())
        digest.update(np.rint(audio * 256).astype("<i2").tobytes())
    assert digest.hexdigest() == "9c0bc9c33bdf59529bd00db077ecb76cce75e7d9bac3aa8a58e3eb77e4d7f00c"


def test_samples_are_16_bit_steps_without_clipping_or_silence():
    for _, audio in synthesize(SMALL):
        steps = audio.astype(np.float64) * 32768
        np.testing.assert_array_equal(steps, np.rint(steps))
        assert audio.dtype == np.float32 and 0.02 < np.abs(audio).max() < 1
        assert 0.4 * 16000 < len(audio) < 5 * 16000


def test_rows_tell_speaker_words_and_that_they_are_synthetic():
    rows = [utterance for utterance, _ in synthesize(SMALL)]
    assert len(rows) == 2 * (2 * 2 + 1)
    assert {row.speaker for row in rows} == {"s00", "s01"}
    assert [row.label for row in rows[:5]] == ["sad", "sad", "angry", "angry", None]
    assert all(set((row.text or "").split()) <= set(LEXICON) for row in rows)
    assert all(row.extra == {"synthetic": "not emotional speech"} for row in rows)
    assert len({(row.speaker, row.text) for row in rows}) > 5


def test_more_utterances_begin_with_the_same_ones():
    few = {u.id: a for u, a in synthesize(SyntheticConfig(speakers=1, utterances=1))}
    many = {u.id: a for u, a in synthesize(SyntheticConfig(speakers=2, utterances=2))}
    assert set(few) < set(many)
    for name, audio in few.items():
        np.testing.assert_array_equal(audio, many[name])
    other = {u.id: a for u, a in synthesize(SyntheticConfig(speakers=1, utterances=1, seed=1))}
    assert not any(np.array_equal(audio, other[name]) for name, audio in few.items())


def features(audio):
    """Mean and spread over time of a coarse log spectrum, without the loudness of the clip."""
    audio = audio / audio.std()
    frames = np.lib.stride_tricks.sliding_window_view(audio, 512)[::256] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    bands = np.log(np.add.reduceat(power, np.unique(np.geomspace(1, 250, 30).astype(int)), 1) + 0.1)
    return np.concatenate([bands.mean(0), bands.std(0), np.abs(np.diff(bands, axis=0)).mean(0)])


def test_emotions_of_an_unseen_speaker_can_be_learned_but_not_perfectly():
    items = synthesize(SyntheticConfig(speakers=6, utterances=6))
    x = np.array([features(audio) for _, audio in items])
    y = np.array([row.label for row, _ in items])
    speaker = np.array([row.speaker for row, _ in items])
    predicted = np.empty_like(y)
    for name in np.unique(speaker):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500))
        model.fit(x[speaker != name], y[speaker != name])
        predicted[speaker == name] = model.predict(x[speaker == name])
    recall = recall_score(y, predicted, average="macro")
    assert 0.45 < recall < 0.9, recall  # chance is 0.25


def test_written_files_read_back_to_the_same_samples(tmp_path):
    manifest = write_synthetic(tmp_path, SMALL)
    files, memory = FileSource(read_manifest(manifest)), MemorySource(synthesize(SMALL))
    for i in range(len(memory)):
        (from_file, row), (from_memory, original) = files.load(i), memory.load(i)
        np.testing.assert_array_equal(from_file, from_memory)
        assert (row.label, row.text, row.speaker) == (
            original.label,
            original.text,
            original.speaker,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"emotions": ("angry", "blue")},
        {"emotions": ()},
        {"speakers": 0},
        {"min_words": 3, "max_words": 2},
        {"difficulty": -1.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match="synthetic"):
        SyntheticConfig(**wrong)


def test_every_emotion_can_be_spoken():
    items = synthesize(SyntheticConfig(speakers=1, utterances=1, emotions=tuple(PROSODY)))
    assert len({audio.tobytes() for _, audio in items}) == len(PROSODY)
