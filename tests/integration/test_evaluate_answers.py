"""The evaluation of answers on a corpus in Emo-Emilia's layout: every way to ask, and going on."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from c2ser_jax.answering import engine, evaluation
from c2ser_jax.answering.answer_log import AnswerLog
from c2ser_jax.data.labels import EMO_EMILIA, class_index
from c2ser_jax.data.manifest import Utterance, read_manifest
from c2ser_jax.data.spoken_scenes import SpokenScenesConfig, write_scenes
from c2ser_jax.errors import UserError
from c2ser_jax.evaluate import main
from c2ser_jax.evaluate_config import EvaluateConfig
from c2ser_jax.evaluation import runner
from c2ser_jax.extraction.clips import Clip, Failure
from c2ser_jax.inference import load
from c2ser_jax.training import checkpoint
from tests.tiny_c2ser import write_tiny_c2ser
from tests.tiny_models import write_tiny

CONDITIONS = [
    "labels", "implicit", "explicit", "implicit, constrained", "explicit, constrained",
    "labels, wording 2", "implicit, seed 0", "implicit, seed 1",
    "labels, alone",
]  # fmt: skip
QUICK = [
    "--decoding", "greedy", "--max_new_tokens", "12", "--resamples", "50",
    "--stability.items", "14", "--stability.seeds", "2", "--stability.wordings", "2",
    "--batch-seconds", "4",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_length():
    """Clips of 0.3 to 0.7 s are padded to 1 s, so that every way to ask is one program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "compile_samples", lambda work: 60 * 16000)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_c2ser(tmp_path_factory.mktemp("m") / "model")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """28 clips: seven emotions, both languages; the wav of one is broken."""
    folder = tmp_path_factory.mktemp("corpus")
    cfg = SpokenScenesConfig(
        speakers=4, emotions=tuple(EMO_EMILIA), languages=("en", "zh"), utterances=1,
        min_words=1, max_words=1,
    )  # fmt: skip
    write_scenes(folder, cfg)
    rows = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    (folder / rows[5]["wav"]).write_bytes(b"no audio")
    return folder


@pytest.fixture(scope="module")
def development(model, tmp_path_factory):
    """Other clips, an utterance of each emotion and speaker, as a list with ids of its own.

    Every other one is labelled as the model answers, so that a temperature fits its scores.
    """
    folder = tmp_path_factory.mktemp("development")
    cfg = SpokenScenesConfig(
        speakers=4, emotions=tuple(EMO_EMILIA), languages=("en", "zh"), utterances=1, seed=9,
        min_words=1, max_words=1,
    )  # fmt: skip
    write_scenes(folder, cfg)
    path = folder / "scenes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    clips = [Clip.of(u) for u in read_manifest(path)][::2]
    for index, answer in load(model, batch_seconds=4.0).stream(clips):
        rows[2 * index]["emotion"] = answer.label
    told = (json.dumps({**row, "index": f"dev-{row['index']}"}) for row in rows)
    path.write_text("".join(f"{line}\n" for line in told))
    return path


def run(model, corpus, output, *more):
    return main(
        [
            "--config", "configs/eval/emo_emilia.py", "--checkpoint", str(model),
            "--output", str(output), "--data.manifest", str(corpus / "scenes.jsonl"),
            "--data.root", str(corpus / "wav"), *QUICK, *more,
        ]
    )  # fmt: skip


class Oracle:
    """Stands for a model: answers as the list says, but for the ids in `wrong` and `deaf`."""

    modes, wordings, temperature, compile_seconds = ("labels",), 1, 1.0, 0.0
    labels = EMO_EMILIA

    def __init__(self, wrong=(), deaf=()):
        self.wrong, self.deaf, self.asked = set(wrong), set(deaf), []

    def ask(self, clips, ask, *, alone=False):
        for index, clip in enumerate(clips):
            self.asked.append(clip.id)
            if clip.id in self.deaf:
                yield index, Failure(index, "deaf", f"{clip.id} is not heard")
                continue
            place = class_index(clip.utterance.label, self.labels) or 0
            said = self.labels[(place + (clip.id in self.wrong)) % len(self.labels)]
            scores = {label: -0.01 if label == said else -6.0 for label in self.labels}
            yield index, {"predicted": said, "scores": scores}


@pytest.fixture
def oracle(monkeypatch):
    """An `Oracle` in the place of every model."""
    found = Oracle()
    monkeypatch.setattr(evaluation, "load_answerer", lambda *_, **__: found)
    return found


def ids(path):
    return [json.loads(line)["index"] for line in path.read_text().splitlines()]


def read(output):
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return json.loads((output / "metrics.json").read_text()), rows


@pytest.fixture(scope="module")
def finished(model, corpus, development, tmp_path_factory):
    """An evaluation that was stopped in the middle and went on; its own copy of the model."""
    output = tmp_path_factory.mktemp("out") / "evaluation"
    copy = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(model, copy)
    options = ("--calibrate", str(development), "--write-temperature")
    add, added = AnswerLog.add, []

    def stop_after_50(self, condition, row):
        added.append((condition, row["id"]))
        if len(added) == 50:
            raise KeyboardInterrupt
        add(self, condition, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerLog, "add", stop_after_50)
        with pytest.raises(KeyboardInterrupt):
            run(copy, corpus, output, *options)
    with open(output / "predictions.jsonl", "a") as file:
        file.write('{"condition": "labels", "id": "cut o')
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerLog, "add", lambda s, c, r: (asked.append((c, r["id"])), add(s, c, r)))
        assert run(copy, corpus, output, *options) == 1
    kept = {pair for pair in added[:49] if pair not in asked}
    return output, copy, kept


def test_every_way_to_ask_is_answered_once_after_a_stop(finished, corpus):
    output, _, kept = finished
    assert len(kept) == 49 or len(kept) == 48  # the broken file was tried again
    metrics, rows = read(output)
    first, *asked = dict.fromkeys(row["condition"] for row in rows)
    assert re.fullmatch(r"development \w{16}", first) and asked == CONDITIONS
    assert len({(row["condition"], row["id"]) for row in rows}) == len(rows)
    listed = [json.loads(line) for line in (corpus / "scenes.jsonl").read_text().splitlines()]
    broken = listed[5]["index"]
    for name in ("labels", "implicit", "explicit"):
        answered = [row for row in rows if row["condition"] == name and "error" not in row]
        assert {row["id"] for row in answered} == {row["index"] for row in listed} - {broken}
    assert [bad["id"] for bad in metrics["bad"]] == [broken]
    assert metrics["num"] == 27 and set(metrics["seconds_per_clip"]) == {"development", *CONDITIONS}


def test_scores_follow_from_the_predictions(finished):
    metrics, rows = read(finished[0])
    temperature = metrics["calibration"]["temperature"]
    for name, one in metrics["conditions"].items():
        answered = [r for r in rows if r["condition"] == name and "error" not in r]
        assert one["wa"] == pytest.approx(np.mean([r["label"] == r["predicted"] for r in answered]))
        recalls = [
            np.mean([r["predicted"] == label for r in answered if r["label"] == label])
            for label in EMO_EMILIA
            if any(r["label"] == label for r in answered)
        ]
        assert one["ua"] == pytest.approx(np.mean(recalls))
        for metric in ("wa", "ua", "wf1", "macro_f1"):
            interval = one["intervals_95"][metric]
            assert interval["low"] <= one[metric] + 1e-9 and one[metric] <= interval["high"] + 1e-9
        english = [r for r in answered if r["id"].startswith("EN")]
        wa = np.mean([r["label"] == r["predicted"] for r in english])
        assert one["by_language"]["en"]["wa"] == pytest.approx(wa)
        assert set(one["by_language"]) == {"en", "zh"} and "constant_floor" in one
        assert "intervals_95" in one["per_class"]["angry"]
        for row in answered:
            logs = np.array([row["scores"][label] for label in EMO_EMILIA]) / temperature
            expected = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
            found = [row["probabilities"][label] for label in EMO_EMILIA]
            np.testing.assert_allclose(found, expected, atol=1e-9)
            named = row.get("named")
            if row["predicted"] is not None and named is not None:
                assert named == row["predicted"]
        if "answers" in one:
            valid = np.mean([row["predicted"] is not None for row in answered])
            assert one["answers"]["valid_rate"]["value"] == pytest.approx(valid)
    for mode in ("implicit", "explicit"):  # constrained answers are always in the set
        kept = metrics["conditions"][f"{mode}, constrained"]["answers"]
        assert kept["hallucination_rate"]["value"] == 0 and kept["valid_rate"]["value"] == 1
        assert metrics["conditions"][mode]["answers"]["valid_rate"]["value"] < 1


def test_stability_compares_the_same_utterances(finished):
    metrics, rows = read(finished[0])
    stability = metrics["stability"]
    assert stability["batch_sizes"]["agreement"]["value"] == 1.0
    assert stability["wordings"]["conditions"] == ["labels", "labels, wording 2"]
    assert stability["explicit_against_implicit"]["num"] == 27
    first, second = (
        {r["id"]: r["predicted"] for r in rows if r["condition"] == name and "error" not in r}
        for name in ("implicit, seed 0", "implicit, seed 1")
    )
    same = np.mean([first[one] == second[one] for one in first])
    assert stability["seeds"]["agreement"]["value"] == pytest.approx(same)
    assert set(first) == set(second) and 13 <= len(first) <= 14


def test_a_temperature_is_fitted_on_development_data_and_written(finished, development, corpus):
    output, model, _ = finished
    metrics, rows = read(output)
    fitted = metrics["calibration"]
    assert fitted["argmax_unchanged"] and fitted["num"] == 28
    assert fitted["fitted"] and fitted["nll_after"] < fitted["nll_before"]
    assert fitted["temperature_before"] == 1.0 and fitted["temperature"] != 1.0
    assert fitted["test_ece_after"] == pytest.approx(
        metrics["conditions"]["labels"]["calibration"]["error"]
    )
    assert load(model).temperature == pytest.approx(fitted["temperature"])
    row = next(r for r in rows if r["condition"] == "labels, alone" and "error" not in r)
    answer = load(model)(row["path"], language=row["language"])
    assert answer.probabilities == pytest.approx(row["probabilities"], abs=1e-5)


def test_a_temperature_that_nothing_decides_is_kept_and_not_written(
    oracle, model, corpus, development, tmp_path, capsys
):
    options = ("--calibrate", str(development))
    before = (model / "config.json").read_bytes()
    with pytest.raises(UserError, match="no temperature fits 28 dev.* of which none is wrong; giv"):
        run(model, corpus, tmp_path / "o", *options, "--write-temperature")
    assert (model / "config.json").read_bytes() == before
    assert run(model, corpus, tmp_path / "o", *options) == 0
    fitted = read(tmp_path / "o")[0]["calibration"]
    assert fitted["temperature"] == 1.0 and fitted["fitted"] is False
    assert "none is wrong; the temperature before is kept" in capsys.readouterr().out
    assert "the temperature before is kept" in (tmp_path / "o" / "report.html").read_text()
    oracle.wrong = set(ids(development)[:3])
    assert run(model, corpus, tmp_path / "p", *options) == 0
    fitted = read(tmp_path / "p")[0]["calibration"]
    assert fitted["fitted"] and fitted["wrong"] == 3 and fitted["temperature"] > 1.1


def test_a_development_list_with_the_same_ids_and_other_labels_is_asked_about_anew(
    oracle, model, corpus, development, tmp_path, capsys
):
    oracle.wrong = set(ids(development)[:9])
    found = []
    text = development.read_text()
    for name, changed in (
        ("a", text), ("a", text), ("b", text.replace('"emotion": "happy"', '"emotion": "sad"')),
    ):  # fmt: skip
        (development.parent / f"{name}.jsonl").write_text(changed)
        oracle.asked.clear()
        options = ("--calibrate", str(development.parent / f"{name}.jsonl"))
        assert run(model, corpus, tmp_path / "o", *options) == 0
        fitted = read(tmp_path / "o")[0]["calibration"]
        found.append((len(oracle.asked), fitted["num"], fitted["wrong"]))
    assert found[0] == (56 + 14, 28, 9) and found[1] == (0, 28, 9)
    assert found[2] == (28, 28, 9)
    labels = [r["label"] for r in read(tmp_path / "o")[1] if r["condition"].startswith("devel")]
    assert labels[:28] != labels[28:]
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith("s per clip")]
    assert sum(line.startswith("development: ") for line in told) == len(found)
    assert not any(re.match(r"development \w", line) for line in told)


def test_development_audio_that_is_not_heard_is_told_apart(
    oracle, model, corpus, development, tmp_path, capsys
):
    oracle.deaf = {ids(development)[2]}
    oracle.wrong = set(ids(development)[3:6])
    options = ("--calibrate", str(development), "--audio_megabytes", "0")
    assert run(model, corpus, tmp_path / "o", *options) == 0
    summary = read(tmp_path / "o")[0]
    assert summary["bad"] == [] and summary["calibration"]["num"] == 27
    assert [bad["id"] for bad in summary["calibration"]["bad"]] == list(oracle.deaf)
    told = capsys.readouterr().out
    assert "1 development utterances, such as" in told and "are not scored" not in told


def test_the_report_is_one_file_with_playable_errors(finished):
    page = (finished[0] / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page) and "<script" not in page
    assert page.count("data:audio/mpeg;base64,") == 12
    for word in ("Confusion", "Reliability", "<svg", "Worst errors", "seconds per clip", "kappa"):
        assert word in page
    assert len(page) < 8e6 + 2e5
    for name in ("implicit", "explicit"):  # constrained answers are those of 14 of 28 utterances
        assert f"<td>{name}, constrained (part of the list)</td>" in page
        assert f"<td>{name}</td>" in page and f"{name} (part" not in page


def test_a_finished_evaluation_asks_nothing_again_and_another_one_is_refused(
    finished, corpus, development, monkeypatch, capsys
):
    output, model, _ = finished
    before = read(output)
    asked = []
    add = AnswerLog.add
    monkeypatch.setattr(AnswerLog, "add", lambda s, c, r: (asked.append(r), add(s, c, r)))
    options = ("--calibrate", str(development))
    assert run(model, corpus, output, *options) == 1
    assert all("error" in row for row in asked)  # the broken file is tried again
    after = read(output)
    assert after[0]["conditions"]["labels"]["wa"] == before[0]["conditions"]["labels"]["wa"]
    assert after[0]["calibration"]["temperature"] == pytest.approx(
        before[0]["calibration"]["temperature"], rel=1e-6
    )
    assert "temperature" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another config \(config.seed: 0 → 3\)"):
        run(model, corpus, output, *options, "--seed", "3")


@pytest.mark.parametrize(
    "changed", [{"language": "zh"}, {"extra": {"channel": 2}}, {"text": "no"}, {"label": "sad"}]
)
def test_whatever_is_known_of_an_utterance_tells_lists_apart(changed):
    utterance = Utterance("u", "u.wav", label="happy", language="en", text="yes")
    other = dataclasses.replace(utterance, **changed)
    assert evaluation._digest([utterance]) != evaluation._digest([other])


def test_a_prior_is_left_out_behind_reasoning():
    cfg = EvaluateConfig(prior=True)
    assert [cfg.ask(mode).prior for mode in ("labels", "implicit", "explicit")] == [1, 1, 0]


def test_predictions_of_another_command_are_not_emptied(oracle, model, corpus, tmp_path):
    kept = tmp_path / "o" / "predictions.jsonl"
    kept.parent.mkdir()
    kept.write_text('{"id": "a", "label": "sad"}\n')
    with pytest.raises(UserError, match="is of another command.*give another --output"):
        run(model, corpus, kept.parent)
    assert kept.read_text() == '{"id": "a", "label": "sad"}\n'
    assert not (kept.parent / "evaluation.json").exists() and not oracle.asked


def test_an_encoder_is_scored_by_the_same_command(corpus, tmp_path):
    heads = ["sad", "angry", "happy", "fearful", "other", "neutral", "surprised", "disgusted"]
    model = write_tiny(tmp_path / "encoder", labels=heads)
    assert run(model, corpus, tmp_path / "o", "--audio_megabytes", "0") == 1
    metrics, rows = read(tmp_path / "o")
    assert list(metrics["conditions"]) == ["labels"] and set(metrics["stability"]) == {
        "batch_sizes"
    }
    assert {row["condition"] for row in rows} == {"labels", "labels, alone"}
    row = next(row for row in rows if "error" not in row)
    assert list(row["probabilities"]) == EMO_EMILIA
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert "data:audio" not in (tmp_path / "o" / "report.html").read_text()


def test_wrong_usage_is_one_sentence(model, corpus, development, tmp_path):
    command = ["--config", "configs/eval/emo_emilia.py", "--checkpoint", str(model)]
    output = ["--output", str(tmp_path / "o")]
    listed = ["--data.manifest", str(corpus / "scenes.jsonl"), "--data.root", str(corpus)]
    for arguments, sentence in (
        (command, "--output is missing"),
        ([*command, *output], "give --data.manifest"),
        ([*command, *output, "--data.manfest", "x"], "nearest is --data.manifest"),
        ([*command, *output, *listed, "--write-temperature"], "needs --calibrate"),
        ([*command, *output, *listed, "--modes", "aloud"], "modes"),
        (
            [*command, *output, *listed, "--calibrate", str(corpus / "scenes.jsonl")],
            "both scored and calibrated on",
        ),
        (
            [*command, *output, *listed, "--labels", "happy", "calm"],
            "is not one of the classes.*--data.skip_unknown_labels",
        ),
        ([*command, *output, *listed, "--labels", "happy", "hapyp"], "'hapyp' is not one of"),
        (["--checkpoint", str(model), "--calibrate", "x"], "need --config of an evaluation"),
        ([*command[:2], *output], "of an evaluation.*give --checkpoint DIR"),
        ([*command[:2], *output, "--calibrate", "x"], "of an evaluation.*give --checkpoint DIR"),
        ([*command, *output, "--manifest", "x"], "--manifest has no effect.*--data.manifest LIST"),
        ([*command, *output, *listed, "--root", "x"], "--root has no effect.*--data.root DIR"),
        ([*command, *output, *listed, "--workdir", "x"], "--workdir has no effect.*--output"),
        ([*command, *output, *listed, "--allow-leakage"], "give --data.allow_leakage True"),
        (
            [*command, *output, *listed, "--skip-unknown-labels"],
            "give --data.skip_unknown_labels True",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            main(arguments)
    first = json.loads((corpus / "scenes.jsonl").read_text().splitlines()[0])["index"]
    trained = write_tiny_c2ser(tmp_path / "t", trained_on=[{"id": first}])
    with pytest.raises(UserError, match="among the model's training data.*allow_leakage True"):
        run(trained, corpus, tmp_path / "p")


def test_labels_that_the_model_never_learned_are_noted_and_a_run_names_the_page(
    oracle, corpus, tmp_path, capsys
):
    four = write_tiny_c2ser(tmp_path / "anna" / "implicit" / "model", labels=EMO_EMILIA[:4])
    run(four, corpus, tmp_path / "o")
    never = ", ".join(EMO_EMILIA[4:])
    told = f"own labels are {', '.join(EMO_EMILIA[:4])}: it may never have learned {never}\n"
    assert told in capsys.readouterr().out
    page = (tmp_path / "o" / "report.html").read_text()
    assert told.strip() in page and "<h1>emo_emilia: anna/implicit</h1>" in page
    whole = write_tiny_c2ser(tmp_path / "plain")
    run(whole, corpus, tmp_path / "p")
    assert "never have learned" not in capsys.readouterr().out
    assert "<h1>emo_emilia: plain</h1>" in (tmp_path / "p" / "report.html").read_text()


def test_development_data_that_was_trained_on_or_is_scored_is_refused(
    oracle, corpus, development, tmp_path
):
    calibrated = ("--calibrate", str(development))
    trained = write_tiny_c2ser(tmp_path / "t", trained_on=[{"id": ids(development)[3]}])
    with pytest.raises(UserError, match=f"{development}: the id 'dev-.* is among .* training data"):
        run(trained, corpus, tmp_path / "o", *calibrated)
    renamed = corpus / "renamed.jsonl"
    lines = (corpus / "scenes.jsonl").read_text().splitlines()[1:2]
    renamed.write_text("".join(x.replace('"index": "', '"index": "dev-') + "\n" for x in lines))
    with pytest.raises(UserError, match="1 utterances, such as 'dev-.*both scored and calibrated"):
        run(trained, corpus, tmp_path / "o", "--calibrate", str(renamed))
    assert not (tmp_path / "o").exists() and not oracle.asked


def test_each_list_is_hashed_once_and_what_was_trained_on_read_once(
    oracle, corpus, development, tmp_path, monkeypatch
):
    calls = []
    for name in ("audio_checksums", "read_trained_on"):

        def noted(given, name=name):
            calls.append(name)
            return getattr(runner if name == "audio_checksums" else checkpoint, name)(given)

        monkeypatch.setattr(evaluation, name, noted)
    trained = write_tiny_c2ser(tmp_path / "t", trained_on=[{"id": "x", "audio_sha256": "y"}])
    options = ("--calibrate", str(development), "--audio_megabytes", "0")
    run(trained, corpus, tmp_path / "o", *options)
    assert sorted(calls) == ["audio_checksums", "audio_checksums", "read_trained_on"]
    assert read(tmp_path / "o")[0]["leakage"].startswith("none: 1 training utterances")
