"""The two-sense corpus: the same bytes everywhere, and neither words nor prosody alone suffice."""

import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest

from c2ser_jax.data.manifest import read_manifest
from c2ser_jax.data.sources import FileSource
from c2ser_jax.data.spoken_scenes import (
    CELLS,
    LANGUAGES,
    SpokenScenesConfig,
    ceilings,
    speak_scenes,
    write_scenes,
)
from c2ser_jax.errors import UserError

SMALL = SpokenScenesConfig(speakers=3, utterances=2, languages=LANGUAGES)
LEVELS = ("low", "middle", "high")
SEVEN = tuple(CELLS)


@pytest.fixture(scope="module")
def spoken():
    """Rows and audio of the four labels, enough to count."""
    return speak_scenes(SpokenScenesConfig(speakers=4, utterances=15))


def test_the_samples_are_the_same_on_every_machine():
    """9 bits of each sample, so that another machine's last digit of a cosine cannot matter."""
    digest = hashlib.sha256()
    for utterance, audio in speak_scenes(SMALL):
        digest.update(f"{utterance.id} {utterance.text}".encode())
        digest.update(np.rint(audio * 256).astype("<i2").tobytes())
    assert digest.hexdigest() == "3718a76e32dab1445f659ce142a11e9af3db5ba0fe13d5925eb7af7dc6e07e71"


def test_more_utterances_begin_with_the_same_ones():
    few = {u.id: a for u, a in speak_scenes(SpokenScenesConfig(speakers=1, utterances=1))}
    many = speak_scenes(SpokenScenesConfig(speakers=2, utterances=2, emotions=SEVEN))
    many = {u.id: a for u, a in many}
    assert set(few) < set(many)
    for name, audio in few.items():
        np.testing.assert_array_equal(audio, many[name])


def test_rows_say_that_they_are_synthetic_and_how_they_were_made():
    rows = [utterance for utterance, _ in speak_scenes(SMALL)]
    assert len(rows) == 3 * 4 * 2
    assert [row.language for row in rows[::8]] == ["en", "en", "zh"]
    for row in rows:
        assert row.extra["synthetic"] == "not emotional speech"
        assert CELLS[row.label or ""] == (row.extra["scene"], row.extra["manner"])
        assert {row.extra[name] for name in ("rate", "pitch", "loudness")} <= set(LEVELS)


def accuracy_of_the_best_guess(keys, labels):
    """Share of the labels that the best rule from key to label gets, on the rows themselves."""
    seen = defaultdict(Counter)
    for key, label in zip(keys, labels, strict=True):
        seen[key][label] += 1
    return sum(max(counts.values()) for counts in seen.values()) / len(labels)


@pytest.mark.parametrize("emotions", [SpokenScenesConfig.emotions, SEVEN])
def test_the_ceilings_are_what_the_best_rule_reaches_on_a_corpus(emotions):
    rows = [row for row, _ in speak_scenes(SpokenScenesConfig(2, emotions, utterances=12, seed=1))]
    labels = [row.label for row in rows]
    found = {
        "constant": accuracy_of_the_best_guess([0] * len(rows), labels),
        "words": accuracy_of_the_best_guess([row.extra["scene"] for row in rows], labels),
        "prosody": accuracy_of_the_best_guess([row.extra["manner"] for row in rows], labels),
        "both": accuracy_of_the_best_guess([str(row.extra) for row in rows], labels),
    }
    assert found == pytest.approx(ceilings(emotions))
    assert max(found["words"], found["prosody"]) <= 0.5 and found["both"] == 1.0


def test_a_word_belongs_to_one_scene_or_to_all_and_a_style_to_one_manner(spoken):
    scenes, manners = defaultdict(set), defaultdict(set)
    for row, _ in spoken:
        for word in row.text.split():
            scenes[word].add(row.extra["scene"])
        style = tuple(LEVELS.index(row.extra[name]) - 1 for name in ("rate", "pitch", "loudness"))
        manners[style].add(row.extra["manner"])
        assert np.sign(sum(style)) == {"calm": -1, "even": 0, "lively": 1}[row.extra["manner"]]
    assert {len(found) for found in scenes.values()} == {1, 2} and len(scenes) == 12
    assert all(len(found) == 1 for found in manners.values())


def test_no_level_of_the_style_is_much_more_frequent_than_the_others(spoken):
    for name in ("rate", "pitch", "loudness"):
        counts = Counter(row.extra[name] for row, _ in spoken)
        assert max(counts.values()) / len(spoken) < 0.55 and len(counts) == 3


def test_the_audio_carries_the_levels(spoken):
    """Loudness and length tell theirs apart, within a speaker, without any overlap of the means."""
    for measure, name in (
        (lambda audio, row: 20 * np.log10(audio.std()), "loudness"),
        (lambda audio, row: len(row.text.split()) / len(audio), "rate"),
    ):
        values = defaultdict(list)
        for row, audio in spoken:
            values[row.speaker, row.extra[name]].append(measure(audio, row))
        for speaker in {row.speaker for row, _ in spoken}:
            low, middle, high = (np.mean(values[speaker, level]) for level in LEVELS)
            spread = np.std(values[speaker, "middle"])
            assert middle - low > spread and high - middle > spread


def test_written_files_read_back_in_both_layouts(tmp_path):
    manifest = write_scenes(tmp_path, SMALL)
    rows, listed = read_manifest(manifest), read_manifest(tmp_path / "scenes.jsonl")
    assert [row.id for row in rows] == [row.id for row in listed]
    assert [(row.label, row.text) for row in rows] == [(row.label, row.text) for row in listed]
    original = speak_scenes(SMALL)
    np.testing.assert_array_equal(FileSource(rows).load(5)[0], original[5][1])
    np.testing.assert_array_equal(FileSource(listed).load(5)[0], original[5][1])
    assert rows[5].extra == original[5][0].extra and rows[5].language == original[5][0].language


@pytest.mark.parametrize(
    "wrong",
    [
        {"emotions": ("angry", "bored")},
        {"languages": ("en", "de")},
        {"languages": ()},
        {"speakers": 0},
        {"max_words": 4},
        {"difficulty": -1.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=r"spoken.scenes"):
        SpokenScenesConfig(**wrong)
