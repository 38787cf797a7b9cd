"""A loaded C2SER answers: the same for a clip alone, in any batch, in any order, at any length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import c2ser_jax
from c2ser_jax.answering import engine
from c2ser_jax.answering.ask import Ask
from c2ser_jax.answering.engine import AnswerEngine
from c2ser_jax.data.cot_text import implicit_answer
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.prompts import prompt
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import Clip, Failure
from c2ser_jax.models.c2ser import C2ser
from tests.tiny_c2ser import LABELS, TINY, tiny_params, tiny_tokenizer, write_tiny_c2ser
from tests.tiny_models import voice, write_wav


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_c2ser(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def model(directory):
    return c2ser_jax.load(directory, batch_seconds=240.0)


def values(answer):
    return np.array(list(answer.probabilities.values()))


def test_32_clips_are_answered_alike_alone_batched_and_shuffled(model, monkeypatch):
    """From 0.5 to 30 s; two programs serve each number of rows, for short clips and long ones."""
    monkeypatch.setattr(engine, "compile_samples", lambda work: 60 * 16000)
    rng = np.random.default_rng(0)
    seconds = [0.5, 30.0, 21.7, *np.geomspace(0.6, 4.9, 29)]
    clips = [Clip(f"c{i}", audio=voice(s, seed=i)) for i, s in enumerate(seconds)]
    model.engine._compiled.clear()
    together = dict(model.stream(clips))
    order = rng.permutation(32)
    shuffled = dict(model.stream([clips[i] for i in order]))
    assert len(model.engine._compiled) <= 2, list(model.engine._compiled)
    alone = dict(model.stream(clips, alone=True))
    for place in range(32):
        for other in (shuffled[int(np.flatnonzero(order == place)[0])], alone[place]):
            assert other.label == together[place].label and other.id == f"c{place}"
            np.testing.assert_allclose(values(other), values(together[place]), atol=1e-5)
    single = model(clips[0])  # a shape of its own: 1 s
    np.testing.assert_allclose(values(single), values(together[0]), atol=1e-5)
    found = np.stack([values(together[i]) for i in range(32)])
    assert np.ptp(found, 0).max() > 0.02, "the answers don't depend on the audio"
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-12)
    assert list(together[0].probabilities) == LABELS


def test_probabilities_are_those_of_the_labels_answers(model):
    """Every answer is run through the whole model: the chance of each among the seven."""
    audio, tokenizer = voice(0.8, seed=3), tiny_tokenizer()
    asked = tokenizer.encode(prompt("implicit", "zh"))
    answers = [[*tokenizer.encode(implicit_answer(n, "zh")), tokenizer.eos] for n in LABELS]
    longest = max(map(len, answers))
    padded = np.array([a + [0] * (longest - len(a)) for a in answers], np.int32)
    real = np.arange(longest) < np.array([[len(a)] for a in answers])
    rows = lambda x: jnp.broadcast_to(jnp.asarray(x), (7, *np.shape(x)))  # noqa: E731
    output = jax.jit(C2ser(TINY).apply)(
        {"params": tiny_params()}, rows(audio), rows(np.int32(len(audio))), rows(asked),
        rows(np.ones(len(asked), bool)), padded, real,
    )  # fmt: skip
    each = jnp.take_along_axis(jax.nn.log_softmax(output.logits), padded[:, :, None], 2)[:, :, 0]
    each = np.asarray(each)
    wanted = []
    for j, answer in enumerate(answers):
        total = 0.0
        for t in range(len(answer)):
            rivals = {a[t]: i for i, a in enumerate(answers) if len(a) > t and a[:t] == answer[:t]}
            total += each[j, t] - np.logaddexp.reduce([each[i, t] for i in rivals.values()])
        wanted.append(np.exp(total))
    answer = model(audio, rate=16000, language="zh")
    np.testing.assert_allclose(values(answer), wanted, atol=2e-5)
    assert answer.label == LABELS[int(np.argmax(wanted))] and answer.text is None
    utterance = Utterance("u", "", language="zh")
    [(_, own)] = model.stream([dataclasses.replace(Clip("u", audio=audio), utterance=utterance)])
    np.testing.assert_allclose(values(own), values(answer), atol=1e-6)  # a row's own language
    assert np.abs(values(model(audio, rate=16000)) - values(answer)).max() > 1e-3


def test_long_audio_is_heard_in_windows_or_refused(model):
    audio = voice(50.0, seed=5)
    [(_, whole)] = model.stream([Clip("long", audio=audio)], alone=True)
    assert whole.seconds == 50.0 and len(whole.windows) == 2
    first, second = whole.windows
    assert first.start == 0.0 and first.end == second.start and second.end == 50.0
    assert 24.9 < first.end < 25.1  # in the middle of the 10 s that both hear
    spans = np.array([w.end - w.start for w in whole.windows])
    logs = np.stack([np.log(list(w.probabilities.values())) for w in whole.windows])
    mean = np.exp(spans @ logs / spans.sum())
    np.testing.assert_allclose(values(whole), mean / mean.sum(), rtol=1e-6)
    last = model(audio[20 * 16000 :], rate=16000)
    np.testing.assert_allclose(values(last), list(second.probabilities.values()), atol=1e-5)
    assert last.windows == ()
    [(_, refused)] = model.stream([Clip("long", audio=audio)], Ask(long_audio="refuse"))
    assert isinstance(refused, Failure) and "50.0 s are more than the 30 s" in refused.message


def test_audio_as_long_as_is_heard_at_once_is_not_refused_at_another_rate(model, tmp_path):
    """A header gives the length before resampling, and an estimate of the one behind it."""
    sound = np.random.default_rng(0).normal(0, 0.1, 44100 * 31).astype(np.float32)
    for rate, more, refused in ((44100, 0, False), (44100, 9, True), (16000, 1, True)):
        path = write_wav(tmp_path / f"{rate} {more}.wav", sound[: rate * 30 + more], rate=rate)
        clip = Clip.of_file(str(path))
        [(_, found)] = model.stream([clip], Ask(long_audio="refuse"), alone=True)
        assert isinstance(found, Failure) == refused, found


def test_a_prior_takes_off_what_the_labels_have_for_silence(model):
    audio = voice(0.8, seed=3)
    plain, corrected = model(audio, rate=16000), model(audio, rate=16000, prior=True)
    silent = model(np.zeros(16000, np.float32), rate=16000)
    expected = values(plain) / values(silent)
    np.testing.assert_allclose(values(corrected), expected / expected.sum(), rtol=1e-4)
    even = model(np.zeros(16000, np.float32), rate=16000, prior=True)
    np.testing.assert_allclose(values(even), 1 / 7, atol=1e-4)
    # Of the prompt that is asked.
    plain, silent = (model(x, rate=16000, prompt=1) for x in (audio, np.zeros(16000, np.float32)))
    expected = values(plain) / values(silent)
    corrected = model(audio, rate=16000, prompt=1, prior=True)
    np.testing.assert_allclose(values(corrected), expected / expected.sum(), rtol=1e-4)


def test_a_temperature_changes_probabilities_and_no_label(model, tmp_path):
    audio = voice(0.8, seed=3)
    hot = c2ser_jax.load(write_tiny_c2ser(tmp_path / "hot", extra={"temperature": 3.0}))
    assert model.temperature == 1.0 and hot.temperature == 3.0
    plain = model(audio, rate=16000)
    scores = np.log(values(plain))
    expected = values(plain) ** (1 / 3) / (values(plain) ** (1 / 3)).sum()
    np.testing.assert_allclose(list(hot.probabilities(scores).values()), expected, rtol=1e-6)


def test_another_label_set_is_answered_from(directory):
    labels = ["sad", "calm", "happy", "angry", "fearful", "surprised", "disgusted"]
    model = c2ser_jax.load(directory, labels=labels)
    answer = model(voice(0.8), rate=16000)
    assert list(answer.probabilities) == labels == model.used_labels
    assert abs(values(answer).sum() - 1) < 1e-12
    with pytest.raises(UserError, match="'hapyp' is not one of the classes.*'happy'"):
        c2ser_jax.load(directory, labels=["hapyp", "sad"])
    with pytest.raises(UserError, match="twice"):
        c2ser_jax.load(directory, labels=["sad", "sad"])


def test_one_bad_file_costs_one_answer(model, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    files = [tmp_path / "bad.wav", write_wav(tmp_path / "a.wav", voice(0.8)), tmp_path / "no.wav"]
    clips = [Clip.of_file(str(file)) for file in files]
    found = dict(model.stream(clips))
    assert [found[i].reason for i in (0, 2)] == ["unreadable", "missing"]
    assert found[1].label in LABELS
    short = [Clip("short", audio=np.zeros(100, np.float32))]
    assert [item.reason for _, item in model.stream(short)] == ["too short"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"mode": "aloud"}, "mode is 'aloud': use one of labels, implicit, explicit"),
        ({"language": "fr"}, "no prompts in the language 'fr': use auto, en or zh"),
        ({"decoding": "beams"}, "decoding is 'beams'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"mode": "implicit", "max_new_tokens": 900}, "need .* positions, the language model has"),
        ({"prompt": 9}, "no wording 9"),
        ({"mode": "explicit", "prior": True}, "'explicit' scores behind its reasoning"),
        ({"langauge": "en"}, "no option 'langauge'"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(model, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        model(voice(0.5), rate=16000, **asked)


def test_the_context_is_checked_with_the_wording_that_is_asked(model, monkeypatch):
    tokens = [model.texts.prompt_tokens("labels", wording) for wording in range(3)]
    longest = int(np.argmax(tokens))
    assert longest > 0 and tokens[0] < tokens[longest]
    fits = model.engine._positions(Ask())
    llm = dataclasses.replace(model.config.llm, max_positions=fits)
    monkeypatch.setattr(model.engine, "cfg", dataclasses.replace(model.config, llm=llm))
    model.engine.check_context(Ask())
    with pytest.raises(UserError, match=f"a prompt of {tokens[longest]} tokens, .* has {fits}:"):
        model.engine.check_context(Ask(prompt=longest))


def test_directories_whose_parts_do_not_fit_are_refused(tmp_path, directory):
    import json
    import shutil

    from c2ser_jax.data.tokenizer import train_tokenizer

    def changed(name, **model):
        folder = tmp_path / name
        shutil.copytree(directory, folder)
        config = json.loads((folder / "config.json").read_text())
        for part, values in model.items():
            config["model"][part] = {**config["model"][part], **values}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    other = train_tokenizer(["".join(map(chr, range(200, 1200)))] * 2, vocabulary=900)
    no_tokenizer = changed("bare")
    shutil.rmtree(no_tokenizer / "tokenizer")
    for folder, sentence in (
        (write_tiny_c2ser(tmp_path / "t", tokenizer=other), "the tokenizer of .* has ids up to"),
        (no_tokenizer, "no tokenizer folder"),
        (changed("depth", llm={"depth": 3}), "has shape"),
        (changed("rank", llm={"lora": {"rank": 4, "alpha": 5.0}}), "lora_a has shape"),
        (changed("plain", llm={"lora": None}), "does not call for"),
        (changed("field", encoder={"widht": 3}), "config.json.*'widht'"),
        (write_tiny_c2ser(tmp_path / "e", extra={"eos": [7]}), "ends texts with the id .* with 7;"),
        (write_tiny_c2ser(tmp_path / "n", extra={"eos": "no"}), "eos 'no'; it must be a list"),
        (changed("heat"), None),
    ):
        if sentence is None:
            config = json.loads((folder / "config.json").read_text())
            config["extra"]["temperature"] = -1
            (folder / "config.json").write_text(json.dumps(config))
            sentence = "temperature -1"
        with pytest.raises(UserError, match=sentence):
            c2ser_jax.load(folder)
    with pytest.raises(UserError, match="longer than the 30 s"):
        c2ser_jax.load(directory, window_seconds=40)
    assert isinstance(c2ser_jax.load(directory).engine, AnswerEngine)
