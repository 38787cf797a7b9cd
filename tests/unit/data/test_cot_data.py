"""Batches for chain of thought: columns, the falling share of explicit answers, too long rows."""

import dataclasses

import numpy as np
import pytest

from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.prompts import prompt
from c2ser_jax.errors import UserError
from tests.tiny_answers import Bytes, make_data, make_items, make_texts

FALLING = AnswerConfig(explicit_share_end=0.0)
TOKENIZER = Bytes()


def decoded(tokens, count):
    return bytes(tokens[:count].tolist()).decode()


def batches(data, count, start=0):
    stream = data.batches(start)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def test_the_share_of_explicit_answers_falls_linearly_and_depends_on_the_step_alone():
    shares = [FALLING.explicit_share(step, 5) for step in range(7)]
    assert shares == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    between = AnswerConfig(explicit_share_start=0.2, explicit_share_end=0.6)
    assert [round(between.explicit_share(step, 3), 6) for step in range(3)] == [0.2, 0.4, 0.6]
    assert AnswerConfig().explicit_share(99, 100) == 1.0 and FALLING.explicit_share(0, 1) == 1.0


def test_rows_carry_their_explicit_answers_at_that_share():
    data = make_data(steps=101, answers=FALLING)
    found = {step: np.stack([data._assemble(0, np.arange(8), step)["explicit"]]).mean()
             for step in range(101)}  # fmt: skip
    assert found[0] == 1.0 and found[100] == 0.0
    middle = np.mean([found[step] for step in range(40, 61)])
    assert abs(middle - 0.5) < 0.1
    falls = [np.mean([found[s] for s in range(begin, begin + 20)]) for begin in (0, 40, 80)]
    assert falls[0] > 0.8 > 0.2 > falls[2]


def test_a_row_has_the_prompt_and_the_answer_of_its_mode_and_ends():
    texts, data = make_texts(make_items()), make_data()
    seen = set()
    for batch in batches(data, 3, start=2):
        for i, name in enumerate(batch["id"]):
            mode = "explicit" if batch["explicit"][i] else "implicit"
            count = batch["answer_tokens"][i]
            assert batch["answer"][i, count - 1] == TOKENIZER.eos
            assert not batch["answer"][i, count:].any()
            assert decoded(batch["answer"][i], count - 1) == getattr(texts[name], mode)
            asked = decoded(batch["prompt"][i], batch["prompt_tokens"][i])
            assert asked == prompt(mode, texts[name].language, published=True)
            whole = batch["teacher_answer_tokens"][i]
            assert decoded(batch["teacher_answer"][i], whole - 1) == texts[name].explicit
            ends = batch["shared"][i].sum()
            assert ends == len(texts[name].implicit) + 1
            assert batch["shared"][i, -ends:].all()
            seen.add(mode)
    assert seen == {"explicit", "implicit"}
    assert batch["answer"].shape[1] % 8 == 0 and batch["prompt"].shape[1] % 8 == 0


def test_prompts_can_follow_the_language():
    texts = make_texts(make_items())
    data = make_data(answers=AnswerConfig(prompts="language"), distils=False)
    (batch,) = batches(data, 1)
    asked = {texts[name].language: decoded(batch["prompt"][i], batch["prompt_tokens"][i])
             for i, name in enumerate(batch["id"])}  # fmt: skip
    assert asked == {language: prompt("explicit", language) for language in ("en", "zh")}
    assert asked["en"] != asked["zh"]


def test_batches_are_the_same_for_any_number_of_processes_and_after_a_restart():
    whole = batches(make_data(), 4)
    later = batches(make_data(), 2, start=2)
    halves = [batches(make_data(share=(i, 2)), 4) for i in range(2)]
    for step in range(4):
        for name, column in whole[step].items():
            if name != "id":
                parts = [half[step][name] for half in halves]
                np.testing.assert_array_equal(np.concatenate(parts), column, err_msg=name)
    for name, column in later[0].items():
        np.testing.assert_array_equal(column, whole[2][name], err_msg=name)


def test_empty_rows_have_no_tokens():
    data = make_data()
    batch = data._assemble(0, np.array([0, -1, 2, -1]), 0)
    assert (batch["answer_tokens"] > 0).tolist() == [True, False, True, False]
    assert not batch["answer"][1].any() and batch["prompt_tokens"][1] == 0
    assert not batch["shared"][1].any() and not batch["explicit"][1]


def test_evaluation_asks_for_what_the_stage_ends_with():
    for end, explicit in ((0.0, False), (1.0, True)):
        data = make_data(answers=AnswerConfig(explicit_share_end=end), distils=False)
        batch = data._assemble(0, np.arange(4), None)
        assert (batch["explicit"] == explicit).all()


def test_texts_decide_the_fingerprint():
    base = make_data(answers=FALLING)
    assert base.fingerprint == make_data(answers=FALLING).fingerprint
    asked = dataclasses.replace(FALLING, prompts="language")
    assert base.fingerprint != make_data(answers=asked).fingerprint


def test_what_is_too_long_is_refused_or_left_out_but_never_cut():
    short = DataConfig(max_seconds=0.4, buckets=1, max_rows=4, threads=1)
    with pytest.raises(UserError, match=r"u\d+.* longer than batches.max_seconds 0.4.*leave_out"):
        make_data(cfg=short)
    loose = dataclasses.replace(FALLING, too_long="leave_out")
    data = make_data(cfg=short, answers=loose)
    assert 0 < len(data.left_out) < 24 and len(data.rows) == 24 - len(data.left_out)
    assert not {row.id for row in data.rows} & set(data.left_out)
    assert max(scan.samples for scan in data.scans) <= 6400
    few = dataclasses.replace(FALLING, max_answer_tokens=10)
    with pytest.raises(UserError, match="answer of .* longer than answers.max_answer_tokens 10"):
        make_data(answers=few)
    kept = make_data(answers=dataclasses.replace(few, too_long="leave_out"))
    assert 0 < len(kept.rows) < 24 and kept._sizes["answer"] <= 16
    none = dataclasses.replace(loose, max_answer_tokens=1)
    with pytest.raises(UserError, match="all 24 rows"):
        make_data(answers=none)


@pytest.mark.parametrize(
    "field, value",
    [
        ("explicit_share_start", 1.5), ("max_answer_tokens", 0), ("prompts", "publishd"),
        ("too_long", "cut"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        dataclasses.replace(FALLING, **{field: value})
