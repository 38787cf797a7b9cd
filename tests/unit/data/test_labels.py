"""Emotion words of many corpora meet in one vocabulary; unknown ones get the nearest class."""

import pytest

from c2ser_jax.data.labels import (
    EMOTION2VEC_PLUS,
    VOCABULARY,
    canonical_label,
    class_index,
    label_set,
    map_labels,
)
from c2ser_jax.errors import UserError

EMODB = ["anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness"]


@pytest.mark.parametrize(
    ("label", "corpus", "word"),
    [
        ("Anger", None, "angry"),
        ("ANG", None, "angry"),
        ("Wut", None, "angry"),
        ("生气/angry", None, "angry"),
        ("<HAPPY>", None, "happy"),
        ("<unk>", None, "unknown"),
        ("Neutral", None, "neutral"),
        ("boredem", None, "bored"),
        ("pleasant surprise", None, "surprised"),
        ("a", "savee", "angry"),
        ("A", "emodb", "fearful"),
        ("A", "URDU", "angry"),
        ("a", None, None),
        ("gio", "emovo", "happy"),
        ("08", "ravdess", "surprised"),
        ("08", None, None),
        ("table", None, None),
    ],
)
def test_labels_mean_what_their_corpus_says(label, corpus, word):
    assert canonical_label(label, corpus=corpus) == word


def test_every_word_of_the_vocabulary_means_itself():
    assert [canonical_label(word) for word in VOCABULARY] == list(VOCABULARY)
    assert len(EMOTION2VEC_PLUS) == 9


def test_a_label_finds_its_class_by_word_then_by_meaning():
    assert class_index("anger", EMODB) == 0
    assert class_index("Angry", EMODB) == 0
    assert class_index("happy", EMODB) == 4
    assert class_index("surprised", EMODB) is None
    assert class_index("joy", ["joy", "happiness"]) == 0
    assert class_index("happy", ["joy", "happiness"]) is None  # it could be either


def test_unlabelled_rows_are_minus_one_and_unknown_ones_are_refused():
    assert map_labels(["sad", None, "Wut"], EMODB) == [6, -1, 0]
    assert map_labels(["A", "A"], EMODB, corpora=["emodb", "urdu"]) == [3, 0]
    assert map_labels(["odd"], EMODB, ignore_unknown=True) == [-1]
    with pytest.raises(UserError, match="'sadnes' is not one of the classes.*'sadness'"):
        map_labels(["sadnes"], EMODB)


def test_the_label_set_is_sorted_and_without_gaps():
    assert label_set(["sad", None, "angry", "sad"]) == ["angry", "sad"]
