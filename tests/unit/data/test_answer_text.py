"""Labels are read off free answers without a guess."""

import pytest

from c2ser_jax.data.answer_text import parse_answer, word_errors

LABELS = ["angry", "happy", "neutral", "sad"]

SAID = {
    "the emotion is<happy>.": "happy",
    "情感是<生气>。": "angry",
    "first <sad>, finally <angry>.": "angry",
    "The speaker sounds joyful.": "happy",
    "She is furious!": "angry",
    "I hear sorrow and grief.": "sad",
    "he sounds unhappy": "sad",
    "This person is happy, not sad.": "happy",
    "No anger at all: a neutral voice.": "neutral",
    "不是开心，是难过": "sad",
    "说话人情绪低落，情感是悲伤。": "sad",
    'they say "I am so happy", but the voice is angry': "angry",
    "她说「我很高兴」，其实很生气。": "angry",
    "It starts happy. In the end the emotion is anger.": "angry",
    "声音听起来高兴。但是情感是愤怒。": "angry",
}
NOTHING = [
    "", "the words are", "not happy", "He isn't angry.", "不开心", "没有生气", "happy or sad",
    "The emotion is happy or sad.", "madly", "sadhu",
]  # fmt: skip
OUTSIDE = {
    "the emotion is<surprised>.": "surprised",
    "情感是<惊讶>。": "surprised",
    "The speaker is terrified": "fearful",
    "<grumpy>": "grumpy",
}


@pytest.mark.parametrize("text", SAID)
def test_a_stated_emotion_is_read(text):
    found = parse_answer(text, LABELS)
    assert found.label == found.named == SAID[text] and not found.outside


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_is_guessed(text):
    found = parse_answer(text, LABELS)
    assert found.label is None and found.named is None and not found.outside


@pytest.mark.parametrize("text", OUTSIDE)
def test_an_emotion_outside_the_set_is_told_apart_from_none(text):
    found = parse_answer(text, LABELS)
    assert found.label is None and found.named == OUTSIDE[text] and found.outside


def test_classes_are_read_in_their_own_spelling():
    assert parse_answer("the emotion is<happy>.", ["anger", "happiness"]).label == "happiness"
    assert parse_answer("so sarcastic", ["sarcastic", "honest"]).label == "sarcastic"


def test_word_errors_count_words_or_characters():
    assert word_errors("mana kado tiku", "mana tiku", "en") == (1, 3)
    assert word_errors("Mana, kado!", "mana kado", "en") == (0, 2)
    assert word_errors("今天 好", "今天很好", "zh") == (1, 3)
    assert word_errors("a b", None, "en") == (2, 2)
    assert word_errors("a", "b c d", "en") == (3, 1)
