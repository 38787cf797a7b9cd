"""The same features whatever a clip is batched with: 64 clips of 0.1 to 30 s, by the command."""

import numpy as np
import pytest

from c2ser_jax.extract import main
from c2ser_jax.extraction import engine
from c2ser_jax.extraction.store import read_rows
from c2ser_jax.inference import load
from conversions.__main__ import main as convert
from tests.golden_roots import golden_cases
from tests.tiny_models import voice, write_scp, write_wav

SECONDS = [0.1, 0.025, 30.0, 21.7, 12.4, 8.8, *np.geomspace(0.11, 5.0, 58).round(3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, file in (("e2vs_tiny", "checkpoint.pt"), ("emotion2vec_plus_tiny", "model.pt")):
        source = golden_cases(f"emotion2vec/{name}")[0] / file
        assert convert(["emotion2vec", "--from", str(source), "--to", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {
        f"c{i:02d}": write_wav(folder / f"{i}.wav", voice(seconds, seed=i))
        for i, seconds in enumerate(SECONDS)
    }


@pytest.mark.parametrize("name", ["e2vs_tiny", "emotion2vec_plus_tiny"])
def test_alone_and_in_large_shuffled_batches_features_agree(
    name, models, clips, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "compile_samples", lambda work: 60 * 16000)  # several shapes
    if name != "e2vs_tiny":
        clips = dict(list(clips.items())[1::3])
    order = np.random.default_rng(0).permutation(list(clips))
    lists = {
        "alone": (write_scp(tmp_path / "a.scp", clips), "0.001"),
        "together": (write_scp(tmp_path / "b.scp", {n: clips[n] for n in order}), "240"),
    }
    found = {}
    for form, (scp, batch_seconds) in lists.items():
        output = tmp_path / form
        arguments = ["--checkpoint", str(models / name), "--input", str(scp)]
        arguments += ["--output", str(output), "--batch-seconds", batch_seconds]
        assert main(arguments) == 0
        found[form] = {
            row["id"]: np.load(output / row["file"]) for row in read_rows(output / "index.jsonl")
        }
    assert set(found["alone"]) == set(found["together"]) == set(clips)
    worst = max(np.abs(found["alone"][n] - found["together"][n]).max() for n in clips)
    assert worst <= 1e-5


def test_half_precision_keeps_the_label_where_it_is_clear(models, clips):
    files = [clips[name] for name in list(clips)[6::4]]
    alone = load(models / "emotion2vec_plus_tiny", dtype="bfloat16", batch_seconds=0.001)
    together = load(models / "emotion2vec_plus_tiny", dtype="bfloat16", batch_seconds=240)
    compared = 0
    for one, other in zip(alone(files), together(files[::-1])[::-1], strict=True):
        second, first = sorted(one.probabilities.values())[-2:]
        if first - second > 0.02:
            assert one.label == other.label
            compared += 1
    assert compared
