"""The extract command: files, index, errors, resume after a kill, exit codes."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.extract import main
from c2ser_jax.extraction.store import read_rows
from c2ser_jax.models.emotion2vec import ConvLayer
from tests.tiny_models import TINY, voice, write_scp, write_tiny, write_wav


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "model", labels=["a", "b", "c"])


@pytest.fixture(scope="module")
def scp(tmp_path_factory):
    """Ten good clips, one missing, one cut off; ids as people choose them."""
    folder = tmp_path_factory.mktemp("audio")
    rows = {}
    for i in range(10):
        name = f"spk/{i}" if i % 3 == 0 else f"utt.{i}"
        rows[name] = write_wav(folder / f"{i}.wav", voice(0.2 + 0.3 * i, seed=i))
    rows["gone"] = folder / "gone.wav"
    cut = write_wav(folder / "cut.wav", voice(1.0))
    cut.write_bytes(cut.read_bytes()[:20_000])
    rows["cut"] = cut
    return write_scp(folder / "wav.scp", rows)


def run(model, scp, output, *more):
    return main(
        ["--checkpoint", str(model), "--input", str(scp), "--output", str(output), *map(str, more)]
    )


def load_all(output):
    return {
        row["id"]: np.load(output / row["file"], allow_pickle=False)
        for row in read_rows(output / "index.jsonl")
    }


def test_every_good_file_gives_features_and_every_bad_one_an_error(model, scp, tmp_path):
    assert run(model, scp, tmp_path / "o") == 1
    ids = [line.split()[0] for line in scp.read_text().splitlines()]
    found = load_all(tmp_path / "o")
    assert list(found) == ids[:10]
    for name, array in found.items():
        seconds = 0.2 + 0.3 * int(name[-1])
        assert array.shape == (TINY.frames(round(seconds * 16000)), TINY.width)
        assert array.dtype == np.float32 and np.isfinite(array).all()
    assert (tmp_path / "o" / "utt.1.npy").is_file() and (tmp_path / "o" / "spk%2F0.npy").is_file()
    errors = {row["id"]: row for row in read_rows(tmp_path / "o" / "errors.jsonl")}
    assert {name: row["reason"] for name, row in errors.items()} == {
        "gone": "missing",
        "cut": "unreadable",
    }
    assert all(row["path"] in row["message"] for row in errors.values())


def test_granularities_agree_with_each_other(model, scp, tmp_path):
    made = {}
    for name, more in {
        "frame": (),
        "utterance": (),
        "tokens": (),
        "published": ("--utterance-tokens", "published"),
    }.items():
        granularity = "tokens" if name == "published" else name
        assert run(model, scp, tmp_path / name, "--granularity", granularity, *more) == 1
        made[name] = load_all(tmp_path / name)
    for utterance, frames in made["frame"].items():
        np.testing.assert_allclose(made["utterance"][utterance], frames.mean(0), atol=1e-5)
        np.testing.assert_allclose(made["published"][utterance], frames[:5], atol=1e-5)
        assert made["tokens"][utterance].shape == (5, TINY.width)


def test_windows_of_a_model_with_another_hop_leave_no_frame_out(tmp_path):
    layers = (ConvLayer(8, 400, 160), ConvLayer(8, 3, 2), ConvLayer(8, 3, 2))
    cfg = dataclasses.replace(TINY, conv_layers=layers)
    model = write_tiny(tmp_path / "m", cfg=cfg)
    samples = {f"{extra}": 65 * 16_000 + extra for extra in (320, 480)}
    rows = {
        name: write_wav(tmp_path / f"{name}.wav", voice(n / 16_000)) for name, n in samples.items()
    }
    scp = write_scp(tmp_path / "wav.scp", rows)
    assert run(model, scp, tmp_path / "o", "--window-seconds", "10") == 0
    for name, frames in load_all(tmp_path / "o").items():
        assert len(frames) == cfg.frames(samples[name]) and frames.any(axis=1).all()


def test_a_killed_run_is_resumed_without_doing_anything_twice(model, tmp_path):
    folder = tmp_path / "audio"
    rows = {f"u{i}": write_wav(folder / f"{i}.wav", voice(3.0, seed=i)) for i in range(400)}
    scp = write_scp(tmp_path / "wav.scp", rows)
    output = tmp_path / "o"
    command = [sys.executable, "-m", "c2ser_jax.extract", "--checkpoint", str(model)]
    command += ["--input", str(scp), "--output", str(output), "--batch-seconds", "6"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(output.glob("*.npy"))) < 20 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.npy")}
    listed = {row["file"] for row in read_rows(output / "index.jsonl")}
    assert 20 <= len(before) < 400 and len(before) - 1 <= len(listed) <= len(before)
    for name in before:
        assert np.load(output / name).shape == (TINY.frames(48_000), TINY.width)

    assert run(model, scp, output, "--batch-seconds", "6", "--resume") == 0
    assert len(load_all(output)) == 400
    for name in listed:
        assert (output / name).stat().st_mtime_ns == before[name]
    assert not list(output.glob(".*"))
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*.npy")}
    assert run(model, scp, output, "--resume") == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in output.glob("*.npy")}


def test_wrong_usage_is_one_sentence(model, scp, tmp_path):
    output = tmp_path / "o"
    for arguments, match in (
        ((model, tmp_path / "no.scp", output), "no.scp"),
        ((tmp_path, scp, output), "no model directory"),
        ((model, scp, output, "--utterance-tokens", "published"), "--granularity tokens"),
        ((model, scp, output, "--layer", "9"), "no block 9"),
        ((model, scp, output, "--batch-seconds", "-1"), "batch seconds"),
    ):
        with pytest.raises(UserError, match=match):
            run(*arguments)
    assert not output.exists()
    output.mkdir()
    (output / "x").write_text("")
    with pytest.raises(UserError, match="not empty"):
        run(model, scp, output)
    with pytest.raises(SystemExit) as stop:
        run(model, scp, output, "--granularity", "word")
    assert stop.value.code == 2


def test_another_model_or_granularity_cannot_resume_a_folder(model, scp, tmp_path):
    run(model, scp, tmp_path / "o", "--granularity", "utterance")
    with pytest.raises(UserError, match="granularity"):
        run(model, scp, tmp_path / "o", "--granularity", "tokens", "--resume")
    other = write_tiny(tmp_path / "other", labels=["a", "b", "c"], seed=1)
    with pytest.raises(UserError, match="checkpoint"):
        run(other, scp, tmp_path / "o", "--granularity", "utterance", "--resume")
    assert json.loads((tmp_path / "o" / "extract.json").read_text())["granularity"] == "utterance"
