"""Answers to learn from: made, written, corrected by people, read back."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from c2ser_jax.data import cot_text
from c2ser_jax.data.answer_text import parse_answer
from c2ser_jax.data.cot_text import (
    cot_texts,
    explicit_answer,
    implicit_answer,
    make_text,
    read_cot_texts,
    write_cot_texts,
)
from c2ser_jax.data.labels import VOCABULARY
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.source_filter import Prosody, Voice, say
from c2ser_jax.data.speaking_style import Style, StyleBounds, measure_style, speech_units
from c2ser_jax.errors import UserError

LEVELS = {"rate": "high", "pitch": "middle", "loudness": "low"}


def speech(level=0.0, tempo=1.0, energy=0.0):
    voice = Voice(120.0, 1.0, Prosody(tempo=1.0, breath=0.05, tilt=0.45))
    mood = Prosody(level=level, tempo=tempo, energy=energy)
    return say(["mana", "loni", "melo"], voice, mood, np.random.default_rng(0))


def row(**changes):
    return dataclasses.replace(
        Utterance("u", "u.wav", label="happy", speaker="s", language="en", text="Oh  no"), **changes
    )


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("label", VOCABULARY)
def test_an_explicit_answer_ends_with_the_implicit_one_and_both_read_back(label, language):
    explicit = explicit_answer(label, language, "Oh no", LEVELS)
    implicit = implicit_answer(label, language)
    assert explicit.endswith(implicit) and explicit == explicit.lower()
    for text in (explicit, implicit):
        assert parse_answer(text, VOCABULARY).label == label
    found = parse_answer(explicit, VOCABULARY)
    assert {n: getattr(found, n) for n in LEVELS} == LEVELS and found.transcript == "oh no"


def test_style_words_that_are_not_known_are_left_out():
    text = explicit_answer("sad", "en", "no", {"rate": None, "pitch": "low", "loudness": None})
    assert text.startswith("the speech is low-pitched. the words are")
    found = parse_answer(text, ["sad"])
    assert (found.rate, found.pitch, found.loudness) == (None, "low", None)


def test_a_given_rationale_takes_precedence_and_quotes_in_words_do_no_harm():
    given = row(text='he said "go" <loud>', extra={"rationale": "because of laughter"})
    text = make_text(given, LEVELS)
    assert "because of laughter. the emotion is<happy>." in text.explicit
    assert parse_answer(text.explicit, ["happy", "sad"]).label == "happy"


def test_an_empty_transcript_and_a_missing_label_get_a_sentence():
    with pytest.raises(UserError, match="transcript is empty"):
        explicit_answer("sad", "en", " \n", LEVELS)
    rows = [row(id="a", text=""), row(id="b", label=None), row(id="c", extra=LEVELS)]
    texts, _, left_out = cot_texts(rows, lambda place: pytest.fail("nothing is to be measured"))
    assert [one.id for one in texts] == ["c"]
    assert [(u.id, "empty" in why or "label" in why) for u, why in left_out] == [
        ("a", True),
        ("b", True),
    ]


def test_measures_follow_the_voice():
    plain, high = measure_style(speech(), "mana loni melo"), measure_style(speech(6.0), "mana")
    fast = measure_style(speech(tempo=1.5), "mana loni melo")
    loud = measure_style(speech(energy=6.0), "mana loni melo")
    assert plain.pitch and abs(plain.pitch - 120) < 25
    assert high.pitch and 1.25 < high.pitch / plain.pitch < 1.6
    assert fast.rate and plain.rate and 1.2 < fast.rate / plain.rate < 2.0
    assert loud.loudness and plain.loudness and 5 < loud.loudness - plain.loudness < 7
    assert measure_style(np.zeros(4000, np.float32), "mana") == Style(None, None, None)


def test_units_are_characters_or_vowel_groups():
    assert speech_units("Das Auto fährt") == 4 and speech_units("你好 world") == 3


def test_levels_are_cut_at_one_deviation_per_speaker_where_there_is_enough():
    styles = [Style(float(v), 100.0 + v, None) for v in range(10)]
    everybody = [*styles, Style(100.0, 500.0, None)]
    bounds = StyleBounds.of(everybody, ["a"] * 10 + ["b"], least=8)
    mean, deviation = 4.5, np.std(np.arange(10.0))
    assert bounds.by_speaker["a"]["rate"] == pytest.approx((mean - deviation, mean + deviation))
    assert bounds.levels(Style(9.0, None, -20.0), "a") == {
        "rate": "high", "pitch": None, "loudness": None,
    }  # fmt: skip
    assert bounds.levels(Style(9.0, None, None), "stranger")["rate"] == "middle"
    again = StyleBounds.from_json(json.loads(json.dumps(bounds.to_json())))
    assert again == bounds
    with pytest.raises(UserError, match="bounds"):
        StyleBounds.from_json({"a": {"rate": 3}})


def test_bounds_come_from_training_rows_alone():
    audio = [speech(level) for level in (0.0, 1.0, 2.0, 12.0)]
    rows = [row(id=str(i), text="mana") for i in range(4)]
    _, bounds, _ = cot_texts(rows, audio.__getitem__, training={"0", "1", "2"})
    _, wider, _ = cot_texts(rows, audio.__getitem__)
    assert bounds.by_speaker[""]["pitch"][1] < wider.by_speaker[""]["pitch"][1]
    texts, _, _ = cot_texts(rows, audio.__getitem__, bounds=bounds)
    assert texts[3].pitch == "high" and texts[1].pitch == "middle"


def test_corrected_rows_are_read_back_and_missing_answers_made(tmp_path):
    text = make_text(row(extra=LEVELS), LEVELS)
    write_cot_texts(tmp_path / "a.jsonl", [text])
    assert read_cot_texts(tmp_path / "a.jsonl") == [text]
    values = {**dataclasses.asdict(text), "transcript": "oh yes", "pitch": "low"}
    del values["explicit"], values["implicit"]
    (tmp_path / "b.jsonl").write_text(json.dumps(values) + "\n\n")
    (found,) = read_cot_texts(tmp_path / "b.jsonl")
    assert "oh yes" in found.explicit and "low-pitched" in found.explicit
    for wrong, sentence in (("[", "line 1"), ('{"id": "a"}', "lacks label"), (
        json.dumps({**values, "rate": "quick"}), "rate is 'quick'")):  # fmt: skip
        (tmp_path / "c.jsonl").write_text(wrong)
        with pytest.raises(UserError, match=sentence):
            read_cot_texts(tmp_path / "c.jsonl")


def test_the_command_lists_what_it_leaves_out(tmp_path, capsys):
    soundfile.write(tmp_path / "good.wav", speech(), 16000)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    lines = [
        {"id": name, "path": f"{name}.wav", "label": "sad", "text": "mana", "language": "zh"}
        for name in ("good", "bad")
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["--manifest", str(tmp_path / "list.jsonl"), "--output", str(tmp_path / "cot.jsonl")]
    bounds = tmp_path / "bounds.json"
    assert cot_text.main([*command, "--bounds", str(bounds)]) == 1
    assert "left out bad" in capsys.readouterr().out
    (found,) = read_cot_texts(tmp_path / "cot.jsonl")
    assert found.id == "good" and found.implicit == "情感是<悲伤>。" and found.pitch == "middle"
    assert StyleBounds.load(bounds).by_speaker[""].keys() == {"rate", "pitch", "loudness"}


def test_a_file_that_may_be_corrected_is_only_written_anew_when_asked_to(tmp_path):
    line = {"id": "a", "path": "none.wav", "label": "sad", "text": "no", **LEVELS}
    (tmp_path / "list.jsonl").write_text(json.dumps(line) + "\n")
    output = tmp_path / "cot.jsonl"
    output.write_text("corrected")
    command = ["--manifest", str(tmp_path / "list.jsonl"), "--output", str(output)]
    with pytest.raises(UserError, match="corrected by hand; give another --output or --overwrite"):
        cot_text.main(command)
    assert output.read_text() == "corrected"
    assert cot_text.main([*command, "--overwrite"]) == 0
    assert [one.id for one in read_cot_texts(output)] == ["a"]
