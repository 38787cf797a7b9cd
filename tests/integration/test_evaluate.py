"""The evaluate command: scores, groups, the files it leaves, and the refusal of trained-on data."""

import json

import numpy as np
import pytest

from c2ser_jax.data.audio import audio_sha256, read_audio
from c2ser_jax.errors import UserError
from c2ser_jax.evaluate import main
from c2ser_jax.inference import load
from tests.tiny_models import voice, write_tiny, write_wav

LABELS = ["angry", "happy", "neutral", "sad"]
WORDS = ["anger", "happiness", "neutral", "Trauer"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "model", labels=LABELS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """40 labelled clips of 5 speakers and 2 languages, one without a label, one missing."""
    folder = tmp_path_factory.mktemp("audio")
    rows = []
    for i in range(42):
        file = folder / f"{i}.wav"
        if i != 41:
            write_wav(file, voice(0.3 + 0.01 * i, seed=i), subtype="PCM_16")
        rows.append(
            {
                "id": f"u{i}", "path": file.name, "label": None if i == 40 else WORDS[i % 4],
                "speaker": f"s{i % 5}", "language": ("de", "en")[i % 2], "corpus": "toy",
            }
        )  # fmt: skip
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(model, manifest, output, *more):
    arguments = ["--checkpoint", str(model), "--manifest", str(manifest), "--output", str(output)]
    return main([*arguments, *more])


def test_scores_follow_from_the_predictions(model, manifest, tmp_path, capsys):
    assert run(model, manifest, tmp_path / "o") == 1
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    rows = [json.loads(x) for x in (tmp_path / "o" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == metrics["num"] == 40 and metrics["unlabelled"] == 1
    assert [bad["id"] for bad in metrics["bad"]] == ["u41"]
    truth = np.array([LABELS.index(row["label"]) for row in rows])
    guess = np.array([LABELS.index(row["predicted"]) for row in rows])
    assert [row["label"] for row in rows] == [LABELS[int(row["id"][1:]) % 4] for row in rows]
    assert metrics["wa"] == pytest.approx((truth == guess).mean())
    recalls = [(guess[truth == c] == c).mean() for c in range(4)]
    assert metrics["ua"] == pytest.approx(np.mean(recalls))
    assert {n: m["recall"] for n, m in metrics["per_class"].items()} == pytest.approx(
        dict(zip(LABELS, recalls, strict=True))
    )
    for metric in ("wa", "ua", "wf1", "macro_f1"):
        interval = metrics["intervals_95"][metric]
        assert interval["low"] <= metrics[metric] <= interval["high"]
        assert 0 < metrics["constant_floor"][metric] <= 0.25 or metric in ("wf1", "macro_f1")
    assert set(metrics["by_speaker"]) == {"s0", "s1", "s2", "s3", "s4"}
    german = [row["correct"] for row in rows if row["language"] == "de"]
    assert metrics["by_language"]["de"]["wa"] == pytest.approx(np.mean(german))
    assert (tmp_path / "o" / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    direct = load(model)(str(manifest.parent / "7.wav"))
    row = next(row for row in rows if row["id"] == "u7")
    assert row["predicted"] == direct.label
    assert row["probabilities"] == pytest.approx(direct.probabilities, abs=1e-5)
    printed = capsys.readouterr().out
    assert "always" in printed and "unknown" in printed  # the floor, and nothing known of leakage


def test_data_that_was_trained_on_is_refused(manifest, tmp_path, capsys):
    sha = audio_sha256(read_audio(manifest.parent / "3.wav"))
    for place, (rows, match) in enumerate(
        (
            ([{"id": "u5", "audio_sha256": None}], "id 'u5'"),
            ([{"id": "renamed", "audio_sha256": sha}], "audio of 'u3' is that of 'renamed'"),
        )
    ):
        model = write_tiny(tmp_path / f"m{place}", labels=LABELS, trained_on=rows)
        with pytest.raises(UserError, match=match):
            run(model, manifest, tmp_path / "o")
        assert not (tmp_path / "o").exists()
    assert run(model, manifest, tmp_path / "o", "--allow-leakage") == 1
    clean = write_tiny(
        tmp_path / "clean", labels=LABELS, trained_on=[{"id": "x", "audio_sha256": "y"}]
    )
    assert run(clean, manifest, tmp_path / "p") == 1
    metrics = json.loads((tmp_path / "p" / "metrics.json").read_text())
    assert "none" in metrics["leakage"][0]


def test_labels_the_model_does_not_know_are_refused_or_left_out(manifest, tmp_path):
    model = write_tiny(tmp_path / "m", labels=["angry", "happy", "neutral", "bored"])
    with pytest.raises(UserError, match="Trauer.*--skip-unknown-labels"):
        run(model, manifest, tmp_path / "o")
    assert run(model, manifest, tmp_path / "o", "--skip-unknown-labels") == 1
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["unknown_labels"] == {"Trauer": 10} and metrics["num"] == 30


def test_wrong_usage_is_one_sentence(model, manifest, tmp_path):
    (tmp_path / "no_run.py").write_text("def get_config():\n    return {}\n")
    quickstart = ["--config", "configs/quickstart"]
    for arguments, match in (
        ([], "either --config, or --checkpoint"),
        ([*quickstart, "--checkpoint", str(model)], "either --config"),
        ([*quickstart, "--calibrate", "x"], "--calibrate and .* need --config of an evaluation"),
        (["--config", str(tmp_path / "no_run.py")], "returned dict, neither a RunConfig nor an Ev"),
        (["--checkpoint", str(model), "--manifest", str(manifest)], "--output is missing"),
        (["--config", str(tmp_path / "x.py")], "x.py"),
    ):
        with pytest.raises(UserError, match=match):
            main(arguments)
    with pytest.raises(UserError, match="no emotion head"):
        run(write_tiny(tmp_path / "e"), manifest, tmp_path / "o")
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(model), "--manifest", str(manifest), "--outptu", "x"])


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(manifest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/o"):
        run(tmp_path / "no model", manifest, tmp_path / "file" / "o")


def test_the_classifiers_of_a_run_are_scored_on_their_own_test_data(manifest, tmp_path, capsys):
    """A run over two folds, as `train` leaves it; its models are random."""
    config = tmp_path / "run.py"
    config.write_text(
        "from c2ser_jax.config import ClassifyStage, CorpusConfig, RunConfig\n"
        "def get_config():\n"
        f"    data = CorpusConfig(corpus='manifest', manifest={str(manifest)!r}, protocol='loso',\n"
        "                        folds=('speaker-s1', 'speaker-s3'))\n"
        "    return RunConfig(name='toy', data=data, classify=ClassifyStage())\n"
    )
    command = ["--config", str(config), "--workdir", str(tmp_path / "w")]
    with pytest.raises(UserError, match="train this run first"):
        main(command)
    others = [{"id": f"u{i}", "audio_sha256": None} for i in range(40) if i % 5 not in (1, 3)]
    for seed, fold in enumerate(("speaker-s1", "speaker-s3")):
        write_tiny(
            tmp_path / "w" / fold / "classify" / "model",
            labels=sorted(WORDS), seed=seed, trained_on=others,
        )  # fmt: skip
    assert main(command) == 1  # u41, of speaker s1, is missing
    rows = [
        json.loads(line)
        for line in (tmp_path / "w/evaluation/predictions.jsonl").read_text().splitlines()
    ]
    assert {(row["fold"][-2:], row["speaker"]) for row in rows} == {("s1", "s1"), ("s3", "s3")}
    assert len(rows) == 16
    metrics = json.loads((tmp_path / "w/evaluation/metrics.json").read_text())
    assert [(row["id"], row["reason"]) for row in metrics["bad"]] == [("u41", "missing")]
    assert [line.split(":")[0][-2:] for line in metrics["leakage"]] == ["s1", "s3"]
    assert main([*command, "--output", str(tmp_path / "p"), "--data.folds", "speaker-s3"]) == 1
