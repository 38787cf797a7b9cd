"""Labels are matched by meaning from training to the last score, and mistakes are told early."""

import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.run import _classes
from tests.integration.tiny_corpus import read_rows, run, write_corpus

CLASSES = ("--data.labels", "angry", "happy", "sad")
LOOSE = [
    part
    for stage in ("pretrain", "classify")
    for part in (f"--{stage}.batches.unknown_labels", "unlabelled")
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Words that mean the classes, one that means none of them, and no label at all."""
    labels = ["anger", "Joy", "sadness", "happy", "bored", None]
    return write_corpus(tmp_path_factory.mktemp("corpus"), labels)


def test_other_words_for_the_classes_are_scored_and_unknown_ones_left_out(manifest, tmp_path):
    data = ("--data.corpus", "manifest", "--data.manifest", manifest, *CLASSES)
    average = ("--classify.loop.ema_decay", 0.5)  # with which others compile the step
    assert run(tmp_path, *data, *LOOSE, *average, "--stages", "classify", "probe") == 0
    for stage in ("classify", "probe"):
        rows = read_rows(tmp_path / stage / "predictions.jsonl")
        speaker = rows[0]["speaker"]
        assert {row["id"]: row["label"] for row in rows} == {
            f"{speaker}-0": "angry",
            f"{speaker}-1": "happy",
            f"{speaker}-2": "sad",
            f"{speaker}-3": "happy",
        }
    trained = {row["id"] for row in read_rows(tmp_path / "classify/model/trained_on.jsonl")}
    assert any(name.endswith("-4") for name in trained)


@pytest.mark.parametrize("loose", [(), LOOSE[:2]])
def test_an_unknown_label_stops_the_run_before_anything_is_trained(manifest, tmp_path, loose):
    data = ("--data.corpus", "manifest", "--data.manifest", manifest, *CLASSES)
    sentence = "'bored' is not one of the classes angry, happy, sad"
    with pytest.raises(UserError, match=sentence) as told:
        run(tmp_path / "run", *data, *loose)
    for option in ("--data.labels", "--classify.batches.unknown_labels unlabelled"):
        assert option in str(told.value)
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))


def test_words_that_nobody_knows_are_told_when_they_become_classes():
    assert _classes(["Joy", "sad"]) == "classes of the corpus: Joy, sad"
    told = "classes of the corpus: angry, zornig2; no emotion known here: zornig2 (--data.labels"
    assert _classes(["angry", "zornig2"]).startswith(told)
