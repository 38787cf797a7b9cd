"""Tokenizers: any text survives, folders load back, and a wrong one gets a sentence."""

import json

import pytest

from c2ser_jax.data.tokenizer import END, check_tokenizer, load_tokenizer, train_tokenizer
from c2ser_jax.errors import UserError
from tests.golden_roots import golden_cases

TEXTS = ["the emotion is<happy>.", "the emotion is<sad>.", "情感是<开心>。"] * 4


def write(folder, tokenizer, without=()):
    for name, data in tokenizer.files().items():
        if name not in without:
            (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 290)


def test_every_text_comes_back_and_frequent_ones_are_short(trained):
    for text in (*TEXTS, "Zürich 😀\t\n wörter <|x|>", ""):
        assert trained.decode(trained.encode(text)) == text
    bare = train_tokenizer(TEXTS, 257)
    assert len(bare.encode(TEXTS[0])) == len(TEXTS[0])
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_training_is_deterministic_and_keeps_within_the_vocabulary(trained):
    assert train_tokenizer(TEXTS, 290).files() == trained.files()
    assert trained.vocabulary <= 290 and trained.eos < trained.vocabulary
    with pytest.raises(UserError, match="257"):
        train_tokenizer(TEXTS, 256)


def test_a_written_folder_loads_with_the_same_ids(trained, tmp_path):
    loaded = load_tokenizer(write(tmp_path, trained))
    assert loaded.encode(TEXTS[2]) == trained.encode(TEXTS[2])
    assert (loaded.eos, loaded.files()) == (trained.eos, trained.files())
    assert loaded.decode([*loaded.encode("so"), loaded.eos]) == "so"


@pytest.mark.parametrize("case", golden_cases("c2ser_llm/c2ser_forward/llm"), ids=str)
def test_qwen2s_folder_gives_upstreams_ids(case):
    tokenizer = load_tokenizer(case)
    samples = json.loads((case.parent / "samples.json").read_text(encoding="utf-8"))
    for sample in samples:
        text = sample["processed_text"]
        assert [*tokenizer.encode(text), tokenizer.eos] == sample["label_ids"]
    assert tokenizer.encode("The emotion") != tokenizer.encode("the emotion")


def test_vocab_and_merges_alone_give_the_same_ids(tmp_path):
    case = golden_cases("c2ser_llm/c2ser_forward/llm")[0]
    whole = load_tokenizer(case)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((case / name).read_bytes())
    parts = load_tokenizer(tmp_path)
    assert parts.encode("the emotion is<happy>. 你好") == whole.encode(
        "the emotion is<happy>. 你好"
    )
    assert parts.eos == whole.eos


def test_a_folder_without_or_with_a_broken_tokenizer_gets_a_sentence(trained, tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    write(tmp_path, trained)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)
    renamed = trained.files()["tokenizer.json"].replace(b"<|endoftext|>", b"<|done|>")
    (tmp_path / "tokenizer.json").write_bytes(renamed)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    with pytest.raises(UserError, match="lacks the token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match="no valid JSON table"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|done|>"}}')
    assert load_tokenizer(tmp_path).eos == trained.eos


def test_a_chat_models_answers_end_as_the_released_models(trained, tmp_path):
    write(tmp_path, trained)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    assert load_tokenizer(tmp_path).eos == trained.eos


def test_no_special_token_is_added_whatever_the_folder_asks_for(trained, tmp_path):
    write(tmp_path, trained)
    values = json.loads(trained.files()["tokenizer.json"])
    one, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": [end, one], "pair": [one, one],
        "special_tokens": {END: {"id": END, "ids": [trained.eos], "tokens": [END]}},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert load_tokenizer(tmp_path).encode(TEXTS[0]) == trained.encode(TEXTS[0])


def test_a_trained_tokenizer_is_what_transformers_loads(trained, tmp_path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(write(tmp_path, trained)), local_files_only=True)
    for text in (*TEXTS, "Zürich 😀\n <|x|>"):
        assert theirs.encode(text, add_special_tokens=False) == trained.encode(text)
    assert theirs.eos_token_id == trained.eos


def test_a_tokenizer_with_more_ids_than_the_weights_gets_a_sentence(trained):
    check_tokenizer(trained, trained.vocabulary)
    with pytest.raises(UserError, match="belongs to the weights"):
        check_tokenizer(trained, trained.vocabulary - 1)
    check_tokenizer(trained, trained.vocabulary, [trained.eos, 7])
    with pytest.raises(UserError, match=rf"ends texts with the id {trained.eos}, .* with 7, 9;"):
        check_tokenizer(trained, trained.vocabulary, [9, 7])
    assert trained.decode(trained.encode(END)) != END
