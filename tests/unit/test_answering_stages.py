"""What the chain-of-thought stages start from, and the texts and tokenizer of a fold."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from c2ser_jax.config import RunConfig
from c2ser_jax.cot_stages import (
    Answers,
    _answers,
    _check_labels,
    _stage_data,
    _write,
    train_answers,
)
from c2ser_jax.data.cot_rows import read_cot_texts, write_cot_texts
from c2ser_jax.data.cot_text import make_text
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import MemorySource
from c2ser_jax.data.speaking_style import StyleBounds
from c2ser_jax.data.splits import Fold
from c2ser_jax.data.tokenizer import check_tokenizer, train_tokenizer
from c2ser_jax.errors import UserError
from c2ser_jax.fold_run import FoldRun
from c2ser_jax.initial_parts import (
    acoustic_encoder,
    check_initial_parts,
    initial_ends,
    initial_parts,
    tokenizer_directory,
)
from c2ser_jax.overrides import to_json
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.run import execute
from c2ser_jax.tasks.cot import ChainOfThought
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    leaves_of,
    read_description,
    write_model,
)
from c2ser_jax.training.model_directory import ends_of
from c2ser_jax.training.preemption import StopSignal
from tests.integration.tiny_answering import get_config
from tests.tiny_models import voice

RUN = get_config()


def model_of(run: RunConfig) -> dict:
    assert run.c2ser is not None
    return to_json(run.c2ser.model(run.encoder))


def write(directory, kind, model, params):
    description = ModelDescription(kind, model)
    tokenizer = train_tokenizer([], vocabulary=257)
    write_model(directory, description, leaves_of(params), tokenizer=tokenizer.files())
    return str(directory)


def test_parts_come_from_directories_of_their_kinds(tmp_path):
    model, one = model_of(RUN), {"x": np.ones(2, np.float32)}
    encoder = write(tmp_path / "whisper", "whisper_encoder", model["encoder"], {"encoder": one})
    llm = write(tmp_path / "qwen", "qwen2", model["llm"], one)
    run = dataclasses.replace(RUN, initial_encoder=encoder, initial_llm=llm)
    check_initial_parts(run)
    parts = initial_parts(run)
    assert parts.keys() == {"encoder", "llm"}
    assert parts["encoder"].keys() == parts["llm"].keys() == {"x"}
    assert tokenizer_directory(run) == tmp_path / "qwen" / "tokenizer"
    whole = write(tmp_path / "c2ser", "c2ser", model, {"acoustic": one, "llm": one})
    run = dataclasses.replace(RUN, initial=whole, initial_encoder=encoder)
    assert initial_parts(run).keys() == {"acoustic", "llm", "encoder"}
    assert tokenizer_directory(run) == tmp_path / "c2ser" / "tokenizer"
    assert acoustic_encoder(whole, to_json(RUN.encoder)).keys() == {"x"}
    assert tokenizer_directory(RUN) is None


def test_a_directory_of_another_kind_or_model_is_refused(tmp_path):
    model, one = model_of(RUN), {"x": np.ones(2, np.float32)}
    llm = write(tmp_path / "qwen", "qwen2", model["llm"], one)
    with pytest.raises(UserError, match="holds a model of kind qwen2, wanted is whisper_encoder"):
        check_initial_parts(dataclasses.replace(RUN, initial_encoder=llm))
    with pytest.raises(UserError, match="kind qwen2, wanted is an emotion2vec or a c2ser"):
        acoustic_encoder(llm, to_json(RUN.encoder))
    deaf = {name: value for name, value in model.items() if name != "acoustic"}
    whole = write(tmp_path / "deaf", "c2ser", deaf, {"llm": one})
    bare = write(tmp_path / "bare", "c2ser", model, {"llm": one})
    for directory, name in ((whole, "deaf"), (bare, "bare")):
        with pytest.raises(UserError, match=f"{name} lacks its acoustic encoder"):
            acoustic_encoder(directory, to_json(RUN.encoder))
    other = {**model["llm"], "rope_theta": 5.0, "dtype": "bfloat16"}
    llm = write(tmp_path / "other", "qwen2", other, one)
    with pytest.raises(UserError, match="rope_theta 5.0, this run has 1000000.0"):
        check_initial_parts(dataclasses.replace(RUN, initial_llm=llm))
    whole = write(tmp_path / "c2ser", "c2ser", {**model, "llm": other}, {"llm": one})
    with pytest.raises(UserError, match="initial .*c2ser: llm was made with rope_theta"):
        check_initial_parts(dataclasses.replace(RUN, initial=whole))


def test_an_acoustic_encoder_of_another_config_is_refused(tmp_path):
    """What shapes don't show: heads would only read the same weights otherwise."""
    wanted, one = to_json(RUN.encoder), {"x": np.ones(2, np.float32)}
    lines: list[str] = []
    for kind in ("emotion2vec_classifier", "c2ser"):
        part = "acoustic" if kind == "c2ser" else "encoder"

        def given(name, kind=kind, part=part, **changes):
            model = wanted | changes
            model = {"acoustic": model} if kind == "c2ser" else model
            return write(tmp_path / kind / name, kind, model, {part: one})

        other = given("heads", heads=2)
        with pytest.raises(UserError, match="was made with heads 2, this run has 4"):
            acoustic_encoder(other, wanted, lines.append)
        same = given("same", dropout=0.5, input_dropout=0.5, alibi_initial_scale=2.0)
        assert acoustic_encoder(same, wanted, lines.append).keys() == {"x"} and not lines
        raw = given("raw", normalize_waveform=not wanted["normalize_waveform"])
        sentence = "was made with normalize_waveform False, this run has True"
        if kind == "c2ser":
            with pytest.raises(UserError, match=f"raw: acoustic {sentence}"):
                acoustic_encoder(raw, wanted, lines.append)
            continue
        assert acoustic_encoder(raw, wanted, lines.append).keys() == {"x"}
        [line] = lines
        assert line.endswith(f"raw {sentence}")
        lines.clear()


def test_all_that_differs_is_told_at_once_with_the_settings_that_mend_it(tmp_path):
    wanted, one = to_json(RUN.encoder), {"x": np.ones(2, np.float32)}
    stem = [{**layer, "channels": layer["channels"] + 1} for layer in wanted["conv_layers"]]
    other = {**wanted, "conv_layers": stem, "depth": 7, "position_dropout": 0.5}
    directory = write(tmp_path / "other", "emotion2vec", other, {"encoder": one})
    with pytest.raises(UserError) as told:
        acoustic_encoder(directory, wanted)
    first = stem[0]["channels"]
    assert f"conv_layers: 0 was made with channels {first}, this run has {first - 1}" in str(
        told.value
    )
    assert f"; depth 7, here {wanted['depth']}" in str(told.value)
    own, settings = str(told.value).split("give the model's own values, ")
    assert settings.split("--")[1:] == [
        *(f"encoder.conv_layers.{i}.channels {layer['channels']} " for i, layer in enumerate(stem)),
        "encoder.depth 7",
    ]
    strange = write(tmp_path / "strange", "emotion2vec", {"depth": "7; x"}, {"encoder": one})
    with pytest.raises(UserError, match="own value, --encoder.depth '7; x'$"):
        acoustic_encoder(strange, wanted)
    long = write(tmp_path / "long", "emotion2vec", {"depth": "7" * 99}, {"encoder": one})
    with pytest.raises(
        UserError, match="…, this run has .* own value$"
    ):  # half a value mends nothing
        acoustic_encoder(long, wanted)
    llm = {**model_of(RUN)["llm"], "width": 96}
    initial = write(tmp_path / "llm", "qwen2", llm, {"x": np.ones(2)})
    with pytest.raises(UserError, match="give the model's own value, --c2ser.llm.width 96$"):
        check_initial_parts(dataclasses.replace(RUN, initial_llm=initial))


def test_a_part_that_is_no_table_is_refused(tmp_path):
    one = {"acoustic": {"x": np.ones(2)}}
    for name, stored in (("null", None), ("text", "small")):
        whole = write(tmp_path / name, "c2ser", {**model_of(RUN), "acoustic": stored}, one)
        with pytest.raises(UserError, match=f"has acoustic {stored!r} in its config.json, which"):
            acoustic_encoder(whole, to_json(RUN.encoder))
        with pytest.raises(UserError, match=f"has acoustic {stored!r} in its config.json, which"):
            check_initial_parts(dataclasses.replace(RUN, initial=whole))


def test_adapters_are_new_or_those_of_the_initial_model(tmp_path):
    model = model_of(RUN)
    lora = model["llm"]["lora"]

    def run_from(name, lora):
        llm = {**model["llm"], "lora": lora}
        whole = write(tmp_path / name, "c2ser", {**model, "llm": llm}, {"llm": {"x": np.ones(2)}})
        return dataclasses.replace(RUN, initial=whole)

    for name, changed in (("alpha", lora["alpha"] / 2), ("rank", 0)):
        with pytest.raises(UserError, match=f"llm: lora was made with {name} {changed}, this run"):
            check_initial_parts(run_from(name, {**lora, name: changed}))
    check_initial_parts(run_from("none", None))
    fewer = {**lora, "dropout": 0.9, "targets": lora["targets"][:1]}
    same = run_from("same", fewer)
    check_initial_parts(same)
    assert same.c2ser is not None
    plain = dataclasses.replace(same.c2ser.llm, lora=None)
    bare = dataclasses.replace(same, c2ser=dataclasses.replace(same.c2ser, llm=plain))
    with pytest.raises(UserError, match="llm was made with lora {'rank.*, this run has None: give"):
        check_initial_parts(bare)


def test_what_a_run_starts_from_is_looked_at_before_its_data(tmp_path, monkeypatch):
    def read(cfg):
        raise AssertionError("the corpus was read")

    monkeypatch.setattr("c2ser_jax.run.read_corpus", read)
    llm = {**model_of(RUN)["llm"], "rope_theta": 5.0}
    other = write(tmp_path / "llm", "qwen2", llm, {"x": np.ones(2)})
    large = tmp_path / "large"
    large.mkdir()
    for name, data in train_tokenizer([str(i) for i in range(999)], 600).files().items():
        (large / name).write_bytes(data)
    for given, sentence in (
        ({"initial_llm": other}, "was made with rope_theta 5.0"),
        ({"tokenizer": str(large)}, "has ids up to 599, the language model 512 rows"),
        ({"tokenizer": str(tmp_path)}, "holds no tokenizer"),
    ):
        with pytest.raises(UserError, match=sentence):
            execute(dataclasses.replace(RUN, **given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def fold_run(tmp_path, stop, run=RUN, lines=None) -> FoldRun:
    """Six training rows, two for development; one has no words, one no label."""
    items = []
    for row in range(8):
        utterance = Utterance(
            f"u{row}", "", label=None if row == 5 else ("angry", "sad")[row % 2],
            speaker=f"s{row % 2}", language=("en", "zh")[row % 2],
            text="" if row == 4 else ("oh no" if row % 2 == 0 else "不好"),
        )  # fmt: skip
        items.append((utterance, voice(0.6 + 0.1 * row, row)))
    rows = [utterance for utterance, _ in items]
    return FoldRun(
        run, Fold("f", rows[:6], rows[6:], []), MemorySource(items), ["angry", "sad"],
        tmp_path, tmp_path, make_local_mesh(), None, (lines if lines is not None else []).append,
        [], stop,
    )  # fmt: skip


def test_texts_and_tokenizer_are_made_once_and_bounds_from_training_rows(tmp_path):
    lines: list[str] = []
    with StopSignal() as stop:
        context = fold_run(tmp_path / "run", stop, lines=lines)
        answers = _answers(context)
        assert list(answers.texts) == ["u0", "u1", "u2", "u3", "u6", "u7"]
        assert "no answers for u4: its transcript is empty" in lines[0]
        louder = fold_run(tmp_path / "other", stop)
        louder.source._audio[6] *= 9  # type: ignore[attr-defined]
        assert _answers(louder).bounds == answers.bounds
        tokens = answers.tokenizer.encode(answers.texts["u3"].explicit)
        assert answers.tokenizer.decode(tokens) == answers.texts["u3"].explicit
        assert RUN.c2ser and answers.tokenizer.vocabulary <= RUN.c2ser.llm.vocabulary

        file = tmp_path / "run" / "answers" / "cot_texts.jsonl"
        corrected = file.read_text("utf-8").replace("oh no", "oh yes")
        file.write_text(corrected, encoding="utf-8")
        assert "oh yes" in _answers(context).texts["u0"].explicit  # a correction stays
        given = dataclasses.replace(RUN.data, cot_texts=str(file))
        again = fold_run(tmp_path / "given", stop, dataclasses.replace(RUN, data=given))
        assert _answers(again).texts == {one.id: one for one in read_cot_texts(file)}


def test_audio_that_is_too_long_is_refused_with_the_stages_option(tmp_path):
    stage = RUN.explicit
    assert stage is not None
    short = dataclasses.replace(stage, batches=dataclasses.replace(stage.batches, max_seconds=0.7))
    with StopSignal() as stop:
        context = fold_run(tmp_path, stop)
        rows = [u for u in context.fold.train if u.label]
        texts = {row.id: make_text(dataclasses.replace(row, text="no"), {}) for row in rows}
        tokenizer = train_tokenizer([one.explicit for one in texts.values()], 300)
        answers = Answers(texts, StyleBounds(), tokenizer)
        with pytest.raises(UserError, match="than explicit.batches.max_seconds 0.7.* explicit.ans"):
            _stage_data(context, "explicit", short, answers)


def test_given_answers_name_the_label_that_the_list_has(tmp_path):
    file = tmp_path / "cot.jsonl"
    named = dataclasses.replace(RUN.data, cot_texts=str(file))
    with StopSignal() as stop:
        context = fold_run(tmp_path / "run", stop, dataclasses.replace(RUN, data=named))
        rows = context.fold.train[:2]
        texts = [make_text(row, {}) for row in rows]
        for label in ("happy", "sad"):  # no class, another class
            wrong = make_text(dataclasses.replace(rows[0], label=label), {})
            write_cot_texts(file, [wrong, texts[1]])
            with pytest.raises(UserError, match=f"'u0' name '{label}', the list .* has 'angry'"):
                _answers(context)
        same = make_text(dataclasses.replace(rows[0], label="anger"), {})
        write_cot_texts(file, [same, texts[1]])
        assert _answers(context).texts.keys() == {"u0", "u1"}


def test_given_answers_may_say_in_words_what_the_corpus_codes():
    rows = [Utterance(one, "", label=one, corpus="emodb") for one in ("W", "A")]
    words = {"W": "angry", "A": "fearful"}
    said = {
        row.id: make_text(dataclasses.replace(row, label=words[row.id], text="no"), {})
        for row in rows
    }
    _check_labels("cot.jsonl", said, rows, ["A", "W"])
    with pytest.raises(UserError, match="answers of 'W' name 'fearful', .* has 'W'"):
        _check_labels("cot.jsonl", {"W": said["A"]}, rows, ["A", "W"])


def test_a_tokenizer_that_the_weights_lack_rows_for_is_refused(tmp_path):
    tokenizer = train_tokenizer(["many words of many kinds"] * 3, vocabulary=270)
    with pytest.raises(UserError, match="language model 258 rows"):
        check_tokenizer(tokenizer, 258)


def test_the_ids_that_end_a_text_are_the_initial_models_and_are_passed_on(tmp_path, monkeypatch):
    model = model_of(RUN)
    whole = tmp_path / "c2ser"
    write_model(whole, ModelDescription("c2ser", model, extra={"eos": [9]}), [])
    run = dataclasses.replace(RUN, initial=str(whole))
    assert initial_ends(run) == [9] and initial_ends(RUN) is None
    assert initial_ends(dataclasses.replace(run, initial_llm="other")) is None
    with StopSignal() as stop:
        context = fold_run(tmp_path / "run", stop, run)
        answers = _answers(fold_run(tmp_path / "run", stop))
        with pytest.raises(UserError, match=f"with the id {answers.tokenizer.eos}, .* with 9;"):
            train_answers(context, "explicit", {})

        monkeypatch.setattr("c2ser_jax.cot_stages.trained_on", lambda data, before: [])
        monkeypatch.setattr("c2ser_jax.cot_stages.origin_of", lambda *of: {})
        monkeypatch.setattr("c2ser_jax.cot_stages.curves_picture", lambda *of, title: None)
        assert RUN.c2ser and RUN.explicit
        task = ChainOfThought(RUN.explicit.task, RUN.c2ser.model(RUN.encoder))
        data = SimpleNamespace(languages=["en"], answers=RUN.explicit.answers)
        _write(context, "explicit", task, {}, data, answers)  # type: ignore[arg-type]
    left = read_description(tmp_path / "run" / "explicit" / "model")
    assert ends_of(left) == [answers.tokenizer.eos]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"c2ser": None}, "needs a model: give c2ser"),
        ({"explicit": None}, "starts from what explicit left"),
        (
            {"explicit": None},
            "implicit.answers.explicit_share_start and implicit.answers.explicit_share_end to 0",
        ),
        (
            {"data": {"protocol": "all"}, "explicit": {"loop": {"evaluate_every": 2}}},
            "^explicit.loop.evaluate_every asks for .* or explicit.loop.evaluate_every None",
        ),
        ({"explicit": {"batches": {"max_seconds": 2.5}}}, "speech encoder hears 2 s at most"),
        ({"explicit": {"task": {"distillation_weight": 1.0}}}, "is for the stage implicit"),
        ({"explicit": {"loop": {"trainable": "llm/"}}}, "task.trainable names what is trained"),
        ({"explicit": {"batches": {"augment": {"gain_db": 3.0}}}}, "only noise may be added"),
    ],
    ids=str,
)
def test_stages_that_cannot_run_are_refused(changes, sentence):
    def changed(config, values):
        return dataclasses.replace(
            config,
            **{name: changed(getattr(config, name), value) if isinstance(value, dict) else value
               for name, value in values.items()},
        )  # fmt: skip

    with pytest.raises(UserError, match=sentence) as caught:
        changed(RUN, changes)
    assert "\n" not in str(caught.value) and json.dumps(str(caught.value))
