import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from c2ser_jax.data.manifest import Utterance
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.protocols import run_probe, stratified_dev
from c2ser_jax.tasks.probe import ProbeConfig

CLASSES = ["angry", "calm", "sad"]
CFG = ProbeConfig(
    learning_rates=(3e-2, 1e-4), hidden=(3, 8), epochs=6, batch_size=8, schedule="constant"
)


@dataclass(frozen=True)
class Parts:
    """The fields of a fold that the probe reads."""

    name: str
    train: list
    test: list
    dev: list = field(default_factory=list)


@pytest.fixture(scope="module")
def corpus():
    """60 utterances of 6 speakers with separable classes: (utterances, {id: features})."""
    rng = np.random.default_rng(0)
    direction = 2.5 * rng.standard_normal((3, 7))
    utterances, features = [], {}
    for index in range(60):
        label = index % 3
        name = f"u{index:02d}"
        utterances.append(
            Utterance(name, f"{name}.wav", label=CLASSES[label], speaker=f"s{index // 10}")
        )
        frames = rng.standard_normal((2 + index % 5, 7)) + direction[label]
        features[name] = frames.astype(np.float32)
    return utterances, features


def by_speaker(utterances, speakers=("s0", "s3")):
    return [
        Parts(
            f"without {s}",
            train=[u for u in utterances if u.speaker != s],
            test=[u for u in utterances if u.speaker == s],
        )
        for s in speakers
    ]


@pytest.fixture(scope="module")
def result(corpus):
    utterances, features = corpus
    lines = []
    found = run_probe(features, by_speaker(utterances), CFG, seed=3, progress=lines.append)
    assert len(lines) == 2 and lines[0].startswith("without s0: UA ")
    return found


def test_separable_classes_are_found_far_above_the_floor(result):
    assert result.metrics["num"] == 20 and result.classes == CLASSES
    assert result.metrics["ua"] > 0.8 > 0.5 > result.floor["wa"]
    assert result.intervals["ua"]["low"] <= result.metrics["ua"] <= result.intervals["ua"]["high"]
    for fold in result.folds:
        assert fold.sizes["test"] == 10 and fold.sizes["dev"] in (9, 10, 11)
        assert fold.sizes["train"] + fold.sizes["dev"] == 50
        assert len(fold.grid) == 4 and fold.chosen in fold.grid
        assert fold.chosen["dev_score"] == max(point["dev_score"] for point in fold.grid)


def test_pooled_score_is_of_the_rows_and_rows_are_of_the_folds(result, corpus):
    rows = result.rows
    assert [row["id"] for row in rows[:10]] == [u.id for u in corpus[0][:10]]
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert result.metrics["wa"] == pytest.approx(right)
    for row in rows:
        assert list(row["probabilities"]) == CLASSES
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["predicted"]


def test_result_is_a_function_of_the_seed(result, corpus):
    utterances, features = corpus
    again = run_probe(features, by_speaker(utterances), CFG, seed=3)
    assert again.summary() == result.summary() and again.rows == result.rows
    other = run_probe(features, by_speaker(utterances), CFG, seed=4)
    assert other.rows != result.rows


def test_wrong_labels_score_at_chance(corpus):
    """The planted fault: labels that don't belong to the features must not score."""
    utterances, features = corpus
    shuffled = dict(zip(features, np.random.default_rng(0).permutation(60), strict=True))
    wrong = {name: CLASSES[number % 3] for name, number in shuffled.items()}
    found = run_probe(features, by_speaker(utterances), CFG, labels=wrong, seed=3)
    assert found.metrics["ua"] < 0.65


def test_shared_speakers_are_warned_of(result, corpus):
    utterances, features = corpus
    assert result.warnings == []
    shared = Parts("fold_1", train=utterances[::2], test=utterances[1::2])
    found = run_probe(features, [shared], CFG)
    assert "1 of 1 folds (in fold_1 6 of 6)" in found.warnings[0]
    assert found.speaker_intervals is not None and result.speaker_intervals is None
    assert found.warnings[0] in found.table()
    nameless = [replace(u, speaker=None) for u in utterances]
    found = run_probe(features, [Parts("f", nameless[:30], nameless[30:])], CFG)
    assert "speakers are unknown" in found.warnings[0]


def test_given_development_utterances_are_the_ones_used(corpus):
    utterances, features = corpus
    fold = Parts("f", train=utterances[:30], dev=utterances[30:41], test=utterances[41:])
    found = run_probe(features, [fold], CFG)
    assert found.folds[0].sizes == {"train": 30, "dev": 11, "test": 19}


def test_utterances_without_features_stop_the_run_unless_allowed(corpus):
    utterances, features = corpus
    part = {k: v for k, v in features.items() if k not in ("u01", "u33")}
    with pytest.raises(UserError, match="2 utterances of the folds have no features .u01, u33."):
        run_probe(part, by_speaker(utterances), CFG)
    found = run_probe(part, by_speaker(utterances), CFG, allow_missing=True)
    assert "scored without 2 utterances" in found.warnings[0]
    assert found.metrics["num"] == 18


def test_unusable_folds_are_refused(corpus):
    utterances, features = corpus
    leaking = [Parts("f", utterances[:31], utterances[30:])]
    nan = {**features, "u05": np.full((2, 7), np.nan, np.float32)}
    nobody = [replace(u, label=None) for u in utterances]
    folds = by_speaker(utterances)
    for bad_features, bad_folds, kwargs, words in [
        (features, [], {}, "no fold"),
        (features, leaking, {}, "1 test utterances are in its training data"),
        (features, [Parts("f", utterances, [])], {}, "fold f has no test utterances"),
        (features, [Parts("f", [], utterances)], {}, "fold f has no training utterances"),
        (features, by_speaker(nobody), {}, "60 utterances of the folds have no label"),
        (features, folds, {"classes": ["angry", "calm"]}, "labels sad are not among"),
        (nan, folds, {}, "1 of 60 utterances have features that are NaN or infinite .u05."),
    ]:
        with pytest.raises(UserError, match=words):
            run_probe(bad_features, bad_folds, CFG, **kwargs)


def test_development_part_is_stratified_and_seeded():
    labels = np.repeat([0, 1, 2, 3], [40, 10, 3, 1])
    train, dev = stratified_dev(labels, 0.2, np.random.default_rng(0))
    np.testing.assert_array_equal(np.bincount(labels[dev], minlength=4), [8, 2, 1, 0])
    np.testing.assert_array_equal(np.sort(np.concatenate([train, dev])), np.arange(54))
    _, same = stratified_dev(labels, 0.2, np.random.default_rng(0))
    _, other = stratified_dev(labels, 0.2, np.random.default_rng(1))
    np.testing.assert_array_equal(dev, same)
    assert (dev != other).any()


def test_report_folder_says_what_the_result_says(result, tmp_path):
    written = result.write(tmp_path / "probe", title="Toy corpus")
    assert set(written) == {"metrics.json", "predictions.jsonl", "confusion.png", "report.md"}
    assert {p.name for p in (tmp_path / "probe").iterdir()} == set(written)
    summary = json.loads(written["metrics.json"].read_text("utf-8"))
    assert summary == json.loads(json.dumps(result.summary()))
    assert summary["settings"]["seed"] == 3 and summary["settings"]["epochs"] == 6
    lines = written["predictions.jsonl"].read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result.rows
    page = written["report.md"].read_text("utf-8")
    assert page.startswith("# Toy corpus\n") and "without s3" in page and "confusion.png" in page
    assert f"{100 * result.metrics['ua']:.1f}" in result.table()


def test_a_fold_without_a_choice_is_reported_without_one(result):
    plain = replace(result, folds=[replace(fold, chosen={}, grid=[]) for fold in result.folds])
    assert "chosen on development" in result.table()
    assert "chosen on development" not in plain.table() and "without s0" in plain.table()
