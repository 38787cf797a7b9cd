"""Written answers: free ones read by the parser, constrained ones always in the label set."""

import zlib

import jax
import numpy as np
import pytest

import c2ser_jax
from c2ser_jax.answering.ask import Ask
from c2ser_jax.answering.program import Question, reasoned
from c2ser_jax.answering.texts import AnswerTexts
from c2ser_jax.data.cot_text import explicit_answer, implicit_answer
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.extraction.clips import Clip
from tests.tiny_c2ser import LABELS, tiny_tokenizer, write_tiny_c2ser
from tests.tiny_models import voice

LEVELS = {"rate": "high", "pitch": "high", "loudness": "low"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = write_tiny_c2ser(tmp_path_factory.mktemp("m") / "model")
    return c2ser_jax.load(directory, batch_seconds=4.0)


@pytest.fixture(scope="module")
def clips():
    """Half in each language; with those of other tests they share their compiled shape."""
    found = []
    for i in range(28):
        utterance = Utterance(f"c{i}", "", language=("en", "zh")[i % 2])
        found.append(Clip(utterance.id, utterance, voice(0.51 + 0.015 * i, seed=i)))
    return found


@pytest.fixture(scope="module")
def texts():
    tokenizer = tiny_tokenizer()
    return AnswerTexts(tokenizer, LABELS, vocabulary=tokenizer.vocabulary)


def values(answer):
    return np.array(list(answer.probabilities.values()))


def test_constrained_short_answers_are_labels_whatever_the_weights(model, clips):
    for answer in model(clips, mode="implicit", decoding="greedy", constrained=True):
        assert answer.text == implicit_answer(answer.label, answer.language)
        assert answer.label in LABELS


def test_constrained_reasoning_ends_with_the_best_label(model, clips):
    options = dict(mode="explicit", decoding="greedy", max_new_tokens=12)
    free, kept = model(clips, **options), model(clips, constrained=True, **options)
    for one, other in zip(free, kept, strict=True):
        assert other.label == max(other.probabilities, key=other.probabilities.get)
        assert other.text.endswith(implicit_answer(other.label, other.language))
        assert other.text != one.text
        np.testing.assert_allclose(values(one), values(other), atol=1e-6)
    scored = model(clips)
    assert np.abs(values(kept[0]) - values(scored[0])).max() > 1e-4  # it's behind the reasoning


def test_sampled_answers_are_a_clips_own_in_any_batch(model, clips):
    ask = Ask("implicit", decoding="sample", max_new_tokens=12)
    together = dict(model.stream(clips, ask))
    backwards = dict(model.stream(clips[::-1], ask))
    assert [together[i].text for i in range(28)] == [backwards[27 - i].text for i in range(28)]
    other = dict(model.stream(clips, Ask("implicit", decoding="sample", max_new_tokens=12, seed=1)))
    assert [other[i].text for i in range(28)] != [together[i].text for i in range(28)]
    assert any(answer.label is None and answer.text for answer in other.values())  # they ramble
    for place, scored in enumerate(model(clips)):  # the same scores as without writing
        np.testing.assert_allclose(values(scored), values(together[place]), atol=1e-5)


def test_sampled_answers_come_from_the_audio_not_from_its_name_or_place(model, clips):
    options = dict(mode="implicit", decoding="sample", max_new_tokens=12, language="en", rate=16000)
    audio = [clip.audio for clip in clips]
    together, backwards = (model(one, **options) for one in (audio, audio[::-1]))
    assert [one.text for one in together] == [one.text for one in backwards[::-1]]
    twice = model([audio[0]] * 28, **options)
    assert {one.text for one in twice} == {together[0].text}
    assert len({one.text for one in together}) > 1


def test_audio_is_only_hashed_where_answers_are_drawn(model, clips, monkeypatch):
    hashed, crc32 = [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *given: hashed.append(given) or crc32(*given))
    list(model.stream(clips, Ask("labels", decoding="sample")))
    assert not hashed
    list(model.stream(clips, Ask("implicit", decoding="sample", max_new_tokens=12)))
    assert len(hashed) == len(clips)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_reasoning_is_cut_where_the_label_is_named(texts, language):
    """An explicit answer as it is trained, one without its sentence, one that was cut off."""
    tokenizer, question = texts.tokenizer, texts.question("explicit", language)
    answer = explicit_answer("sad", language, "oh no", LEVELS)
    ids = tokenizer.encode(answer)
    ending = tokenizer.decode(ids)[-len(implicit_answer("sad", language)) :]
    assert ending == implicit_answer("sad", language)
    ended, rambling = [*ids, tokenizer.eos], tokenizer.encode("la la la la")
    rows = [ended, [*rambling, tokenizer.eos], rambling, ids[:-1]]
    longest = max(map(len, rows))
    tokens = np.array([row + [tokenizer.pad] * (longest - len(row)) for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    find = jax.jit(reasoned, static_argnums=3)
    found = np.asarray(find(tokens, lengths, question, (tokenizer.eos,)))
    assert found[1] == found[2] == len(rambling)
    reasons = tokenizer.decode(ids[: found[0]])
    assert answer == reasons + tokenizer.decode(ids[found[0] :]) and "<" not in reasons
    assert found[3] == found[0]
    # Behind the reasoning stands exactly what the label's own answer is scored by.
    place = LABELS.index("sad")
    scored = question.labels[place][question.label_mask[place]].tolist()
    assert ids[found[0] :] + [tokenizer.eos] == scored
    ask = Ask("explicit", constrained=True)
    text, label = texts.written(np.array(ended), int(found[0]), ask, language, "happy")
    assert label == "happy" and text == reasons + text[len(reasons) :]
    assert text.endswith(implicit_answer("happy", language))


def test_both_languages_have_the_same_shapes(texts):
    for mode in ("labels", "implicit", "explicit"):
        english, chinese = (texts.question(mode, language) for language in ("en", "zh"))
        for name in Question.__dataclass_fields__:
            assert getattr(english, name).shape == getattr(chinese, name).shape
    assert texts.trie("en").tokens.shape == texts.trie("zh").tokens.shape


def test_a_directorys_own_prompts_are_used():
    tokenizer = tiny_tokenizer()
    given = {"implicit": {"": "what is felt?"}, "explicit": {"zh": "怎么了？"}}
    texts = AnswerTexts(tokenizer, LABELS, vocabulary=tokenizer.vocabulary, prompts=given)
    assert texts.prompt("labels", "en") == texts.prompt("implicit", "en") == "what is felt?"
    assert texts.prompt("explicit", "zh") == "怎么了？"
    assert texts.prompt("explicit", "en").startswith("Please describe")
    assert texts.prompt("implicit", "en", 1) != texts.prompt("implicit", "en", 2)
