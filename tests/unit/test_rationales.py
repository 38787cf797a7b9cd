"""A language model writes the reasons of answers, in batches, whatever their number."""

import dataclasses
import json

import pytest

from c2ser_jax import rationales
from c2ser_jax.data.answer_text import parse_answer
from c2ser_jax.data.cot_text import make_text
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.tokenizer import train_tokenizer
from c2ser_jax.errors import UserError
from c2ser_jax.rationales import with_rationales
from c2ser_jax.training.checkpoint import ModelDescription, leaves_of, write_model
from tests.tiny_qwen2 import TINY, tiny_params

CFG = dataclasses.replace(TINY, vocabulary=257, max_positions=400, lora=None)


def write(folder, tokenizer, kind="qwen2", cfg=CFG):
    description = ModelDescription(kind, dataclasses.asdict(cfg))
    write_model(folder, description, leaves_of(tiny_params(cfg)), tokenizer=tokenizer.files())
    return folder


def test_reasons_are_written_and_labels_stay(tmp_path):
    model = write(tmp_path / "qwen2", train_tokenizer([], 257))
    rows = [
        Utterance(f"u{i}", "", label=label, language=language, text="mana kado"[: 4 + 5 * (i % 2)])
        for i, (label, language) in enumerate([("sad", "en"), ("happy", "zh"), ("angry", "en")] * 3)
    ]
    texts = [make_text(row, {"rate": "low"}) for row in rows]
    found = with_rationales(texts, model, new_tokens=12)
    assert [one.id for one in found] == [one.id for one in texts]
    assert any(one.rationale != other.rationale for one, other in zip(found, texts, strict=True))
    for one, other in zip(found, texts, strict=True):
        assert one.explicit.endswith(other.implicit)
        assert parse_answer(one.explicit, ["sad", "happy", "angry"]).label == one.label
    alone = with_rationales(texts[4:5], model, new_tokens=12)
    assert alone == found[4:5]


def test_another_model_or_tokenizer_gets_a_sentence(tmp_path):
    text = make_text(Utterance("u", "", label="sad", text="no"), {})
    whisper = write(tmp_path / "whisper", train_tokenizer([], 257), kind="whisper")
    with pytest.raises(UserError, match="need a Qwen2"):
        with_rationales([text], whisper)
    large = write(tmp_path / "large", train_tokenizer(["aaaa aaaa"] * 9, 259))
    with pytest.raises(UserError, match="belongs to the weights"):
        with_rationales([text], large)
    config = json.loads((large / "config.json").read_text())
    for name, value, sentence in (
        ("width", "wide", "config.json: the model config has a value of the wrong type"),
        ("lora", {"targets": 3}, "config.json: the model config has a value of the wrong type"),
        ("widht", 3, "config.json: .*'widht'"),
    ):
        changed = {**config, "model": {**config["model"], name: value}}
        (large / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=sentence):
            with_rationales([text], large)


def test_drawn_reasons_come_from_the_seed_and_the_id_whatever_the_batch(tmp_path):
    model = write(tmp_path / "qwen2", train_tokenizer([], 257))
    rows = [Utterance(f"u{i}", "", label="sad", text=f"ma {i}") for i in range(10)]
    texts = [make_text(row, {}) for row in rows]
    found = with_rationales(texts, model, new_tokens=12, seed=1)
    assert with_rationales(texts[::-1], model, new_tokens=12, seed=1)[::-1] == found
    assert with_rationales(texts, model, new_tokens=12, seed=2) != found
    twins = [make_text(dataclasses.replace(rows[0], id=name), {}) for name in "abcd"]
    reasons = {one.rationale for one in with_rationales(twins, model, new_tokens=12, seed=1)}
    assert len(reasons) > 1


def test_a_reason_for_another_emotion_or_none_leaves_the_text_as_it_is():
    text = make_text(Utterance("u", "", label="sad", language="zh", text="no"), {"rate": "low"})
    for reason in ("", "she is very happy.", "因为他很生气。"):
        assert rationales._with_reason(text, reason) == text
    for reason in ("the voice drags.", "grief is heard.", "他很难过。"):
        changed = rationales._with_reason(text, reason)
        assert changed.rationale == reason and reason in changed.explicit
        assert changed.explicit.endswith(text.implicit)


def test_the_first_sentence_is_taken_without_tags():
    first = rationales._first_sentence
    assert first(" It <sad> drags.\nNext one. ") == "It sad drags."
    assert first("声音低沉。所以难过。") == "声音低沉。"
    assert first("a\x1b\ufffdb") == "a b"
    assert first(" ... !") == "" and first("no end") == "no end"


def test_words_beyond_the_context_keep_their_reason(tmp_path):
    model = write(tmp_path / "qwen2", train_tokenizer([], 257))
    texts = [make_text(Utterance("u", "", label="sad", text="ma " * 200), {})]
    assert with_rationales(texts, model, new_tokens=12) == texts
