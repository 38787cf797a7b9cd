"""Training on a list with broken files: each is listed with its reason, all others are used."""

import pytest

from c2ser_jax.errors import UserError
from tests.bad_manifest import make_bad_manifest
from tests.integration.tiny_corpus import read_rows, run

# Crops of 0.6 s have the shape that other tests' batches have.
SETTINGS = (
    "--data.corpus", "manifest", "--stages", "pretrain", "probe",
    "--data.max_bad_share", 0.1, "--pretrain.batches.max_seconds", 0.6,
)  # fmt: skip


def test_a_run_lists_exactly_the_bad_files_and_uses_the_others(tmp_path):
    manifest, bad, good = make_bad_manifest(tmp_path / "data", ordinary=91)
    assert run(tmp_path / "run", *SETTINGS, "--data.manifest", manifest) == 0
    listed = read_rows(tmp_path / "run/bad_files.jsonl")
    assert {row["id"]: row["reason"] for row in listed} == bad
    assert all(row["detail"] for row in listed)
    used = {
        row["id"]
        for name in ("pretrain/model/trained_on.jsonl", "probe/predictions.jsonl")
        for row in read_rows(tmp_path / "run" / name)
    }
    assert used <= set(good) and len(used) >= 0.6 * len(good)


def test_too_many_bad_files_stop_the_run_with_the_list(tmp_path):
    manifest, bad, _ = make_bad_manifest(tmp_path / "data", ordinary=9, long_seconds=31)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", *SETTINGS, "--data.manifest", manifest)
    assert all(name in str(caught.value) for name in bad) and "max_bad_share" in str(caught.value)
    assert not (tmp_path / "run").exists()
