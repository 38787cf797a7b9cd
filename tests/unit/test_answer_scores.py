"""What a stage's model answers about test utterances: conditions, rows, and what is left out."""

import dataclasses
import json

import pytest

from c2ser_jax import answer_scores, inference
from c2ser_jax.answer_scores import score_answers, tell_answers
from c2ser_jax.answering.ask import Answer, Ask
from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.data.cot_text import implicit_answer, make_text, write_cot_texts
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import FileSource
from c2ser_jax.data.splits import Fold
from c2ser_jax.extraction.clips import Failure
from c2ser_jax.training.preemption import StopSignal
from tests.integration.tiny_answering import STAGE, get_config
from tests.tiny_c2ser import LABELS, write_tiny_c2ser
from tests.tiny_models import voice, write_wav
from tests.unit.test_answering_stages import fold_run

LEVELS = {"rate": "low", "pitch": "high", "loudness": "middle"}
WRITTEN = ["explicit", "explicit, constrained"]
CONDITIONS = {
    "explicit": WRITTEN,
    "implicit": ["labels", "implicit", "implicit, constrained", *WRITTEN],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One model for all tests."""
    return inference.load(write_tiny_c2ser(tmp_path_factory.mktemp("m") / "model"))


@pytest.fixture
def context(tmp_path, model, monkeypatch):
    """Four clips to ask about, one of them without words; a broken one, and one without a label."""
    rows = [
        Utterance(
            f"t{i}", str(tmp_path / f"{i}.wav"), label=None if i == 5 else LABELS[i],
            text=None if i == 2 else "oh no", language=("en", "zh")[i % 2], extra=LEVELS,
        )
        for i in range(6)
    ]  # fmt: skip
    for i, row in enumerate(rows):
        write_wav(tmp_path / f"{i}.wav", voice(0.5, seed=i))
        if row.id == "t4":
            (tmp_path / "4.wav").write_bytes(b"no audio")

    def load(directory):
        assert directory.parent.name in CONDITIONS and directory.name == "model"
        return model

    monkeypatch.setattr(answer_scores.inference, "load", load)
    run = dataclasses.replace(
        get_config(),
        explicit=dataclasses.replace(STAGE, answers=AnswerConfig(max_answer_tokens=12)),
        implicit=dataclasses.replace(
            STAGE, answers=AnswerConfig(explicit_share_end=0.0, max_answer_tokens=12)
        ),
    )
    lines: list[str] = []
    with StopSignal() as stop:
        yield dataclasses.replace(
            fold_run(tmp_path, stop, run, lines),
            fold=Fold("f", [], [], rows), source=FileSource(rows), labels=LABELS,
        )  # fmt: skip


def answers(clips, ask):
    """What a model might say that knows another label in each mode, and hears no broken clip."""
    chosen = ("labels", "implicit", "explicit").index(ask.mode)
    for place, clip in enumerate(clips):
        if clip.id == "t4":
            yield place, Failure(place, "unreadable", "no audio")
            continue
        chances = {label: 0.4 if i == chosen else 0.1 for i, label in enumerate(LABELS)}
        text = None if ask.mode == "labels" else implicit_answer(LABELS[chosen], "en")
        yield place, Answer(clip.id, LABELS[chosen], chances, 0.5, ask.mode, text=text)


def test_every_stage_is_asked_what_it_was_trained_to_answer(context, model, monkeypatch, tmp_path):
    monkeypatch.setattr(model, "stream", answers)
    for stage, predicted in (("explicit", LABELS[2]), ("implicit", LABELS[0])):
        context.lost.clear()
        result = score_answers(context, stage)
        assert result is not None and context.lost == ["t4"]
        assert [row["id"] for row in result.rows] == ["t0", "t1", "t2", "t3"]
        for row in result.rows:
            assert list(row["answers"]) == CONDITIONS[stage] and row["predicted"] == predicted
            assert row["predicted"] == max(LABELS, key=row["probabilities"].__getitem__)
            assert row["levels"] == (dict.fromkeys(LEVELS) if row["id"] == "t2" else LEVELS)
        tell_answers(context.run, [result], tmp_path)
        told = json.loads((tmp_path / "answers.json").read_text())
        assert told["num"] == 4 and list(told["conditions"]) == CONDITIONS[stage]


def test_given_texts_say_what_is_true_and_not_how_long_answers_may_be(
    context, model, monkeypatch, tmp_path
):
    limits, stream = [], model.stream

    def noted(clips, ask):
        limits.append(ask.max_new_tokens)
        return stream(clips, ask)

    monkeypatch.setattr(model, "stream", noted)
    file = tmp_path / "cot.jsonl"
    write_cot_texts(file, [make_text(context.fold.test[1], {"rate": "high"})])
    data = dataclasses.replace(context.run.data, cot_texts=str(file))
    given = dataclasses.replace(context, run=dataclasses.replace(context.run, data=data))
    result = score_answers(given, "explicit")
    assert result is not None
    nothing = {"rate": None, "pitch": None, "loudness": None}
    assert [row["levels"] for row in result.rows] == [
        nothing, {**nothing, "rate": "high"}, nothing, nothing,
    ]  # fmt: skip
    assert limits == [12] and context.lost == ["t4"]
    for row in result.rows:
        assert row["predicted"] == row["answers"]["explicit, constrained"]["label"]


@pytest.mark.parametrize("tokens", [450, 5000])
def test_explicit_answers_end_where_the_stage_or_the_context_does(
    context, model, monkeypatch, tokens
):
    limits, room = [], model.engine.room(Ask("explicit"))
    assert 450 < room < 5000

    def noted(clips, ask):
        limits.append(ask.max_new_tokens)
        model.engine.check_context(ask)
        return answers(clips, ask)

    monkeypatch.setattr(model, "stream", noted)
    stage = dataclasses.replace(STAGE, answers=AnswerConfig(max_answer_tokens=tokens))
    longer = dataclasses.replace(context.run, explicit=stage)
    score_answers(dataclasses.replace(context, run=longer), "explicit")
    assert limits == [min(tokens, room)]


def test_a_clip_that_fails_in_one_way_only_is_left_out(context, model, monkeypatch):
    def failing(clips, ask):
        for place, answer in answers(clips, ask):
            broken = ask.mode == "labels" and clips[place].id == "t0"
            yield place, Failure(place, "not finite", "no scores") if broken else answer

    monkeypatch.setattr(model, "stream", failing)
    result = score_answers(context, "implicit")
    assert result is not None
    assert [row["id"] for row in result.rows] == ["t1", "t2", "t3"]
    assert sorted(context.lost) == ["t0", "t4"]


def test_without_labelled_test_utterances_there_is_nothing_to_score(context):
    bare = dataclasses.replace(context, fold=Fold("f", [], [], context.fold.test[5:]))
    assert score_answers(bare, "implicit") is None
