"""Training on a list with broken files: each is listed with its reason, all others are used."""

import json
from pathlib import Path

import pytest

from c2ser_jax import train
from c2ser_jax.errors import UserError
from tests.bad_manifest import make_bad_manifest

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart")
TINY = """
    --encoder.width 16 --encoder.depth 1 --encoder.prenet_depth 0 --encoder.heads 2
    --encoder.conv_layers.0.channels 20 --encoder.conv_layers.1.channels 8
    --front_end.steps 2 --front_end.rows 2 --encoder.position_width 9 --encoder.position_depth 3
    --pretrain.task.data2vec.clone_batch 1 --pretrain.task.data2vec.decoder_depth 1
    --pretrain.task.data2vec.decoder_width 8 --pretrain.batches.buckets 1
    --pretrain.batches.max_seconds 2 --pretrain.batches.batch_seconds 8 --pretrain.loop.steps 2
    --pretrain.loop.log_every 1 --pretrain.optimizer.warmup_steps 1
    --probe.epochs 1 --probe.hidden 4 --probe.warmup_epochs 1 --data.corpus manifest
""".split()


def test_a_run_lists_exactly_the_bad_files_and_uses_the_others(tmp_path):
    manifest, bad, good = make_bad_manifest(tmp_path / "data", ordinary=91)
    arguments = ["--config", CONFIG, "--workdir", str(tmp_path / "run"), "--no-progress", *TINY]
    assert train.main([*arguments, "--data.manifest", str(manifest)]) == 0
    listed = [json.loads(x) for x in (tmp_path / "run/bad_files.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in listed} == bad
    assert all(row["detail"] for row in listed)
    used = {
        json.loads(line)["id"]
        for name in ("pretrain/model/trained_on.jsonl", "probe/predictions.jsonl")
        for line in (tmp_path / "run" / name).read_text().splitlines()
    }
    assert used <= set(good) and len(used) >= 0.6 * len(good)


def test_too_many_bad_files_stop_the_run_with_the_list(tmp_path):
    manifest, bad, _ = make_bad_manifest(tmp_path / "data", ordinary=9, long_seconds=31)
    with pytest.raises(UserError) as caught:
        train.main(["--config", CONFIG, "--workdir", str(tmp_path / "run"), *TINY,
                    "--data.manifest", str(manifest)])  # fmt: skip
    assert all(name in str(caught.value) for name in bad) and "max_bad_share" in str(caught.value)
    assert not (tmp_path / "run").exists()
