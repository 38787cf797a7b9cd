"""What free answers state is read in all its words, and what they deny, doubt or ask is not."""

import pytest

from c2ser_jax.data.answer_text import parse_answer
from c2ser_jax.data.emotion_statements import stated_emotion
from c2ser_jax.data.emotion_words import ELSEWHERE, MEANINGS, label_noun, label_word
from c2ser_jax.data.labels import EMO_EMILIA, VOCABULARY, canonical_label

LABELS = EMO_EMILIA

STATED = {
    "en": [
        "{}", "{}.", "The speaker is {}.", "She sounds very {}!", "emotion: {}", "**{}**",
        '{{"emotion": "{}"}}', 'The emotion is "{}".', "It isn't clear at first. They feel {}.",
        "There is no doubt: {}.", "I'm afraid of errors, but the emotion is {}.",
        "Not calm at all but rather {}.", "Is the speaker bored? No, they are {}.",
        'They say "I was so bored, so excited", and sound {}.',
    ],
    "zh": [
        "{}", "{}。", "说话人很{}。", "她听起来非常{}！", "情感：{}", "情感是“{}”。", "他特别{}。",
        "不是平静，而是{}。", "说话人并不平静。情绪是{}。", "说话人无聊吗？不，他{}。",
        "她说“我好无聊”，但是听起来{}。",
    ],
}  # fmt: skip
NOT_STATED = {
    "en": [
        "not {}", "The speaker is not {}.", "She doesn't sound very {}.", "no sign of being {}",
        "never {}", "He seems anything but {}.", "far from {}", "Is the speaker {}?",
        "I cannot tell whether this is {}.", "without being {}", "neither {} nor bored",
        'The speaker says "I am {}".', "{} or even not {}? Unclear.", "It can't be {}.",
        "{} can be ruled out.", "He's hardly {}, and no longer {}.",
        "If she were {}, she would say so.",
    ],
    "zh": [
        "不是{}", "说话人并不{}。", "没有{}", "没有表现出明显的{}", "谈不上{}", "说话人{}吗？",
        "无法判断是否{}。", "她说：“我很{}”。", "难以确定是{}还是平静。", "不{}也不平静",
        "如果她{}，她会说的。",
    ],
}  # fmt: skip
WORDS = {
    "en": sorted(word for word in MEANINGS if word.isascii()),
    "zh": sorted(word for word in MEANINGS if not word.isascii()),
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_word_is_read_wherever_it_is_stated(language):
    for template in STATED[language]:
        for word in WORDS[language]:
            text = template.format(word)
            assert stated_emotion(text, VOCABULARY) == MEANINGS[word], text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_word_is_read_where_it_is_denied_doubted_asked_or_quoted(language):
    for template in NOT_STATED[language]:
        for word in WORDS[language]:
            text = template.format(word, word)
            assert stated_emotion(text, VOCABULARY) is None, text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("label", VOCABULARY)
def test_the_words_that_answers_are_written_with_are_understood(label, language):
    assert canonical_label(label_word(label, language)) == label
    if label not in ("other", "unknown"):
        assert MEANINGS[label_noun(label, language)] == label


def test_no_word_has_two_meanings():
    assert not MEANINGS.keys() & ELSEWHERE.keys()
    assert set(MEANINGS.values()) <= set(VOCABULARY)
    for word, meaning in MEANINGS.items():
        assert canonical_label(word) in (None, meaning), word


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The speaker is not happy but sad.", "sad"),
        ("not happy, angry or sad", None),
        ("She is sad rather than angry.", "sad"),
        ("more sad than angry", "sad"),
        ("not only angry but also sad", None),
        ("The voice might be sad, but the emotion is angry.", "angry"),
        ("The emotion is sad because of fear.", "sad"),
        ("She is sad because she was scared.", "sad"),
        ("说话人很悲伤，因为害怕。", "sad"),
        ("The emotion is sad. The speaker tries to sound happy.", "sad"),
        ("A happy tone. Overall, the speaker is surprised.", "surprised"),
        ("The speaker is happy. The speaker is sad.", "sad"),
        ("The emotion is happy and surprised.", None),
        ("happy at first, then sad", None),
        ("excited and happy", "happy"),
        ("The emotion of the speaker is neutral, with no anger.", "neutral"),
        ("I am happy to help! The speaker is angry.", "angry"),
        ("生气勃勃，非常开心", "happy"),
        ("他不但生气，而且恐惧。", None),
        ("听起来高兴，但情感是愤怒。", "angry"),
        ("因为恐惧，说话人的情感是悲伤。", "sad"),
        ("综上，说话人悲伤。", "sad"),
        ("不开心、不生气，也没有惊讶", None),
        ("他不满，很生气。", "angry"),
        ("", None),
        ("...", None),
        ("她不是不高兴", None),
    ],
)
def test_of_several_emotions_the_verdict_counts_or_none(text, label):
    assert parse_answer(text, LABELS).label == label


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("The speaker is calm.", "calm"),
        ("The speaker seems jealous.", "jealous"),
        ("说话人很尴尬。", "ashamed"),
        ("她很不耐烦", "impatient"),
        ("The emotion is flabbergasted.", "flabbergasted"),
        ("情感是<平静>。", "calm"),
        ("the emotion is <Grumpy>.", "grumpy"),
        ("情感是悠然。", "悠然"),
    ],
)
def test_what_lies_outside_the_set_is_named(text, named):
    found = parse_answer(text, LABELS)
    assert (found.label, found.named, found.outside) == (None, named, True)


@pytest.mark.parametrize(
    "text",
    ["The emotion is unclear.", "the emotion is mixed", "情感是未知。", "情感是不明。", "the words",
     "I can't tell whether the emotion is happy", "The emotion is conveyed.", "the emotion is<hap"],
)  # fmt: skip
def test_an_answer_that_names_nothing_is_not_outside(text):
    found = parse_answer(text, LABELS)
    assert found.label is None and found.named is None and not found.outside


def test_other_and_unknown_are_read_as_verdicts_where_they_are_labels():
    labels = [*LABELS, "other", "unknown"]
    assert parse_answer("情感是其他。", labels).label == "other"
    assert parse_answer("The other speaker is sad.", labels).label == "sad"
    assert parse_answer("The emotion is other.", labels).label == "other"


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("He speaks slowly in a deep voice and softly.", ("low", "low", "low")),
        ("Speech is rapid, high-pitched, and the volume is high.", ("high", "high", "high")),
        ("A normal pace, medium pitch and moderate volume.", ("middle",) * 3),
        ("语速较慢，声音低沉，音量偏小。", ("low", "low", "low")),
        ("说话人语速很快，音调较高，声音洪亮。", ("high", "high", "high")),
        ("语速适中，音高正常，音量中等。", ("middle",) * 3),
        ("The voice is not loud, sometimes fast, sometimes slow.", (None, None, None)),
        ("A normal conversation.", (None, None, None)),
        ("The speech is slow and quiet. A fast answer.", ("low", None, "low")),
    ],
)
def test_speaking_style_is_read_in_other_words_too(text, levels):
    found = parse_answer(text, LABELS)
    assert (found.rate, found.pitch, found.loudness) == levels


@pytest.mark.parametrize(
    ("text", "transcript"),
    [
        ('The speaker says: "Leave me alone!" The emotion is sad.', "Leave me alone!"),
        ("说话人说“别管我了”，很悲伤。", "别管我了"),
        ("The transcript is “no”.", "no"),
        ("The emotion is sad.", None),
        ('the speech is slow. the words are "oh no', None),
    ],
)
def test_quoted_words_are_the_transcript(text, transcript):
    assert parse_answer(text, LABELS).transcript == transcript
