"""Which rows can have answers, why others have none, and what people may correct."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import yaml

from c2ser_jax import rationales
from c2ser_jax.data import cot_text
from c2ser_jax.data.cot_text import check_row, cot_texts, make_text, read_cot_texts, write_cot_texts
from c2ser_jax.data.labels import VOCABULARY
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.prompts import (
    LANGUAGES,
    WORDINGS,
    answer_language,
    check_language,
    paraphrases,
    prompt,
)
from c2ser_jax.data.speaking_style import Style, StyleBounds, speech_units
from c2ser_jax.errors import UserError
from tests.golden_roots import golden_cases

LEVELS = {"rate": "high", "pitch": "middle", "loudness": "low"}


def row(**changes):
    return dataclasses.replace(
        Utterance("u", "u.wav", label="happy", speaker="s", language="en", text="Oh no"), **changes
    )


def buzz(hertz=150.0, seconds=0.4, level=0.3):
    time = np.arange(round(seconds * 16000)) / 16000
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 6))
    return (level * wave).astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": None}, "no label"),
        ({"label": "hapy"}, "'hapy' is not one of the classes.*'happy'"),
        ({"text": None}, "transcript is empty"),
        ({"text": " \n"}, "transcript is empty"),
        ({"text": "… !"}, "transcript is empty"),
        ({"language": "englsh"}, "'englsh' is not known; did you mean 'english'"),
        ({"language": "xx"}, "'xx' is not known"),
    ],
)
def test_a_row_that_can_have_no_answers_gets_a_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        check_row(row(**changes), VOCABULARY)
    texts, _, left_out = cot_texts(
        [row(**changes), row(id="v", extra=LEVELS)], lambda place: buzz(), labels=VOCABULARY
    )
    assert [one.id for one in texts] == ["v"] and [one.id for one, _ in left_out] == ["u"]


def test_a_label_of_ones_own_and_a_corpus_code_are_known():
    check_row(row(label="sarcastic"), [*VOCABULARY, "sarcastic"])
    check_row(row(label="sarcastic"))
    coded = make_text(row(label="W", corpus="emodb"), LEVELS)
    assert (coded.label, coded.implicit) == ("angry", "the emotion is<angry>.")


@pytest.mark.parametrize(
    ("given", "language"),
    [("<CN>", "zh"), ("zh-CN", "zh"), ("zh_Hans", "zh"), ("Mandarin", "zh"), ("普通话", "zh"),
     ("EN-us", "en"), ("english", "en"), ("de", "en"), ("Turkish", "en"), (None, "en"), ("", "en")],
)  # fmt: skip
def test_a_row_is_answered_in_chinese_or_else_english(given, language):
    check_language(given)
    assert answer_language(given) == language
    assert make_text(row(language=given), LEVELS).language == language


@pytest.mark.parametrize(
    "case", golden_cases("c2ser_llm/c2ser_forward/prompt_config.yaml"), ids=str
)
def test_english_prompts_are_the_released_models(case):
    published = yaml.safe_load(case.read_text(encoding="utf-8"))
    for mode, task in (("explicit", "EXP_DESCRIPTION"), ("implicit", "IMP_DESCRIPTION")):
        assert [prompt(mode, "en")] == published[f"<EMOTION> <{task}>"]


def test_prompts_are_published_in_english_and_have_other_wordings_in_both_languages():
    assert prompt("explicit", "zh", published=True) == prompt("explicit", "en")
    assert prompt("implicit", "en").startswith("Please consider the speaking style, content, and")
    for mode in WORDINGS:
        for language in LANGUAGES:
            others = paraphrases(mode, language)
            assert len(others) >= 2 and prompt(mode, language) not in others
            assert len(set(others)) == len(others)
    with pytest.raises(UserError, match="no prompt for the mode 'imlicit'"):
        prompt("imlicit", "en")


def test_levels_that_a_row_states_count_before_measured_ones():
    bounds = StyleBounds({"": {"pitch": (100.0, 120.0), "loudness": (-90.0, 0.0)}})
    (text,), _, _ = cot_texts([row(extra={"loudness": "high"})], lambda _: buzz(), bounds=bounds)
    assert (text.pitch, text.loudness, text.rate) == ("high", "high", None)


def test_syllables_are_counted_in_every_script():
    counts = {"こんにちは": 5, "안녕하세요": 5, "Привет мой": 3, "Καλημέρα": 4, "ırmak": 2,
              "3 Bäume": 3, "hmm": 1, "مرحبا": 2, "?!": 0}  # fmt: skip
    assert {text: speech_units(text) for text in counts} == counts


def write(path, **changes):
    values = {**dataclasses.asdict(make_text(row(), LEVELS)), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}) + "\n")
    return path


def test_answers_that_were_corrected_are_normalised(tmp_path):
    path = write(
        tmp_path / "a.jsonl", explicit="She laughs. The emotion is <HAPPY>.", implicit=None
    )
    (found,) = read_cot_texts(path)
    assert found.explicit == "she laughs. the emotion is<happy>." == "she laughs. " + found.implicit


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": "sad"}, "label is 'sad'.* names happy; correct one"),
        ({"implicit": "well."}, "names none"),
        ({"explicit": "the emotion is<happy>. indeed."}, "does not end with the implicit one"),
        ({"explicit": 3}, "explicit is 3; give a text"),
        ({"language": "xx"}, "line 1: its language 'xx' is not known"),
        ({"transcript": "..."}, "transcript is empty"),
        ({"transcript": None}, "lacks transcript"),
    ],
)
def test_a_row_that_contradicts_itself_gets_a_sentence_with_its_line(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read_cot_texts(write(tmp_path / "a.jsonl", **changes))
    assert "line 1" in str(caught.value)


def test_answers_can_hold_any_character_and_no_id_twice(tmp_path):
    text = make_text(row(id="a\u2028b\udc80", text="line\u2028break \x85 end"), LEVELS)
    write_cot_texts(tmp_path / "a.jsonl", [text])
    assert read_cot_texts(tmp_path / "a.jsonl") == [text]
    write_cot_texts(tmp_path / "a.jsonl", [text, text])
    with pytest.raises(UserError, match="occurs in lines 1 and 2"):
        read_cot_texts(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="no file of answers"):
        read_cot_texts(tmp_path / "none.jsonl")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for i, hertz in enumerate((120.0, 150.0, 150.0, 200.0)):
        soundfile.write(folder / f"{i}.wav", buzz(hertz), 16000)
        lines.append({"id": str(i), "path": f"{i}.wav", "label": "sad", "text": "mana"})
    lines[1]["rationale"] = "A sob is heard"
    lines += [{"id": "odd", "path": "0.wav", "label": "odd", "text": "mana"},
              {"id": "gone", "path": "gone.wav", "label": "sad", "text": "mana"}]  # fmt: skip
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(corpus, output, *more):
    return ["--manifest", str(corpus / "list.jsonl"), "--output", str(output), *map(str, more)]


def test_processes_measure_what_one_measures_and_bounds_are_read_again(corpus, tmp_path, capsys):
    bounds = tmp_path / "bounds.json"
    assert cot_text.main(command(corpus, tmp_path / "a.jsonl", "--bounds", bounds)) == 1
    told = capsys.readouterr().out
    assert "left out odd: the label 'odd'" in told and "left out gone: " in told
    assert "answers of 4 of 6" in told
    cot_text.main(command(corpus, tmp_path / "b.jsonl", "--workers", 1))
    assert read_cot_texts(tmp_path / "a.jsonl") == read_cot_texts(tmp_path / "b.jsonl")
    assert [one.pitch for one in read_cot_texts(tmp_path / "a.jsonl")] == [
        "low", "middle", "middle", "high",
    ]  # fmt: skip
    higher = StyleBounds.of([Style(None, 300.0 + i, None) for i in range(9)], [None] * 9)
    higher.save(bounds)
    labels = ("--labels", "odd")
    assert cot_text.main(command(corpus, tmp_path / "c.jsonl", "--bounds", bounds, *labels)) == 1
    found = read_cot_texts(tmp_path / "c.jsonl")
    assert [one.pitch for one in found] == ["low"] * 5 and StyleBounds.load(bounds) == higher
    assert found[4].implicit == "the emotion is<odd>."
    with pytest.raises(UserError, match="--workers is -1"):
        cot_text.main(command(corpus, tmp_path / "c.jsonl", "--workers", -1))


def test_a_model_writes_rationales_where_a_row_has_none(corpus, tmp_path, monkeypatch):
    asked = []

    def with_rationales(texts, directory, *, seed):
        asked.append((directory, [one.id for one in texts], seed))
        return [dataclasses.replace(one, rationale=f"because {one.id}") for one in texts]

    with pytest.raises(UserError, match="DIR is no model directory"):
        cot_text.main(command(corpus, tmp_path / "a.jsonl", "--rationale-model", "DIR"))
    monkeypatch.setattr(rationales, "check_model", lambda directory: None)
    monkeypatch.setattr(rationales, "with_rationales", with_rationales)
    model = ("--rationale-model", "DIR", "--rationale-seed", 5)
    cot_text.main(command(corpus, tmp_path / "a.jsonl", *model))
    assert asked == [("DIR", ["0", "2", "3"], 5)]
    found = {one.id: one.rationale for one in read_cot_texts(tmp_path / "a.jsonl")}
    assert found == {"0": "because 0", "1": "A sob is heard", "2": "because 2", "3": "because 3"}
