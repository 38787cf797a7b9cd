"""Whole conversions of the golden checkpoints: there, back bit by bit, checked, or refused."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig
from c2ser_jax.training.checkpoint import read_carried, read_description, read_params
from conversions import verify
from conversions.__main__ import main
from conversions.reader import open_checkpoint
from conversions.tensors import LazyTensor
from conversions.torch_writer import write_torch
from tests.golden_roots import golden_cases
from tests.unit.conversions.files import legacy_bytes, out_tree, safetensors_bytes, write

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = {
    "emotion2vec/e2vs_tiny/checkpoint.pt": 97,
    "emotion2vec/emotion2vec_plus_tiny/model.pt": 105,
    "emotion2vec/training_checkpoint_tiny/checkpoint_last.pt": 255,
    "emotion2vec/pretrain_loss/weights.pt": 157,
    "emotion2vec/hostile/valid_control.pt": 67,
}
GOLDEN = {
    f"{path} {i}": (case, count)
    for path, count in CHECKPOINTS.items()
    for i, case in enumerate(golden_cases(path))
}
HOSTILE = {
    f"{path.name} {i}": path
    for i, folder in enumerate(golden_cases("emotion2vec/hostile"))
    for path in sorted(folder.glob("*.pt"))
    if path.stem != "valid_control"
}
E2VS = golden_cases("emotion2vec/e2vs_tiny")[0]
PLUS = golden_cases("emotion2vec/emotion2vec_plus_tiny")[0]
TRAINED = golden_cases("emotion2vec/training_checkpoint_tiny")[0]
CONTROL = golden_cases("emotion2vec/hostile")[0] / "valid_control.pt"


@pytest.fixture(autouse=True)
def _without_the_source_implementation(monkeypatch):
    """FunASR is no requirement of the tests; a stand-in is put in its place where it matters."""
    monkeypatch.setattr(verify, "has_source_implementation", lambda: False)


def convert(source: Path, target: Path, *options: str) -> Path:
    assert main(["emotion2vec", "--from", str(source), "--to", str(target), *options]) == 0
    return target


def assert_equal_trees(a, b, path=()) -> int:
    """Asserts equality bit for bit; returns the number of tensors compared."""
    assert type(a) is type(b), path
    if isinstance(a, LazyTensor):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        assert a.read().tobytes() == b.read().tobytes(), path
        return 1
    if isinstance(a, dict):
        assert list(a) == list(b), path
        return sum(assert_equal_trees(a[key], b[key], (*path, key)) for key in a)
    if isinstance(a, list | tuple):
        assert len(a) == len(b), path
        return sum(
            assert_equal_trees(x, y, (*path, i)) for i, (x, y) in enumerate(zip(a, b, strict=True))
        )
    assert a == b or (math.isnan(a) and math.isnan(b)), path
    return 0


@pytest.mark.parametrize("name", GOLDEN)
def test_every_golden_checkpoint_comes_back_bit_by_bit(name, tmp_path, capsys):
    source, count = GOLDEN[name]
    model = convert(source, tmp_path / "model")
    back = tmp_path / "back.pt"
    assert main(["export", "emotion2vec", "--from", str(model), "--to", str(back)]) == 0
    assert assert_equal_trees(open_checkpoint(source).tree, open_checkpoint(back).tree) == count
    assert main(["verify", "emotion2vec", "--from", str(source), "--to", str(model)]) == 0
    assert f"{count} tensors" in capsys.readouterr().out


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_leave_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        main(["emotion2vec", "--from", str(HOSTILE[name]), "--to", "deep/model"])
    assert str(refusal.value).count("\n") == 0 and HOSTILE[name].name in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_the_hostile_files_are_hostile_for_different_reasons():
    reasons = {}
    for path in HOSTILE.values():
        with pytest.raises(UserError) as refusal:
            main(["emotion2vec", "--from", str(path), "--to", "/nonexistent/model"])
        reasons[path.stem] = str(refusal.value)
    for stem, word in {
        "pwned": "io.open",
        "pwned_legacy_format": "io.open",
        "code_in_conv_spec": "feature_encoder_spec",
        "truncated": "truncated",
        "nan_weights": "blocks.0.mlp.fc1.weight holds NaN",
        "wrong_shape": "wrong shape: blocks.0.attn.qkv.weight",
        "missing_key": "unfilled target: encoder/extra_tokens",
    }.items():
        assert word in reasons[stem]


def test_the_command_refuses_with_exit_code_2_and_one_line(tmp_path):
    hostile = CONTROL.parent / "pwned.pt"
    command = [sys.executable, "-m", "conversions", "emotion2vec", "--from", str(hostile)]
    ran = subprocess.run(
        [*command, "--to", "model"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["wav2vec", "--from", "a", "--to", "b"],
        ["emotion2vec", "--to", "b"],
        ["emotion2vec", "--from", "a", "--to", "b", "--normalize-waveform", "perhaps"],
        ["export", "emotion2vec", "--from", "a"],
        ["verify", "emotion2vec", "--from", "a", "--to", "b", "--seed", "x"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_places_that_are_taken_are_left_alone(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("x")
    with pytest.raises(UserError, match="not an empty directory"):
        convert(CONTROL, tmp_path / "taken")
    assert (tmp_path / "taken" / "precious").read_text() == "x"
    model = convert(CONTROL, tmp_path / "model")
    (tmp_path / "file.pt").write_text("x")
    with pytest.raises(UserError, match="exists"):
        main(["export", "emotion2vec", "--from", str(model), "--to", str(tmp_path / "file.pt")])
    with pytest.raises(UserError, match="is not a directory"):
        main(["export", "emotion2vec", "--from", str(model), "--to", str(tmp_path / "no/x.pt")])


def test_a_converted_emotion2vec_s_gives_upstreams_features(tmp_path):
    import jax

    io = np.load(E2VS / "io.npz")
    model = convert(E2VS / "checkpoint.pt", tmp_path / "model")
    description = read_description(model)
    assert description.kind == "emotion2vec_pretraining"
    assert description.origin["model"] == "Emotion2Vec-S"
    assert description.model["normalize_waveform"] is False
    assert description.extra["pretraining"]["decoder_width"] == 48
    wave, truth, params = io["s1_wav"][None], io["s1_x"], read_params(model)["encoder"]
    apply = jax.jit(Emotion2Vec(Emotion2VecConfig.from_dict(description.model)).apply)

    def deviation() -> float:
        output = apply({"params": params}, wave, np.array([wave.shape[1]], np.int32))
        return float(np.abs(np.asarray(output.frames[0]) - truth).max())  # type: ignore[union-attr]

    assert deviation() < 1e-4
    fc1 = params["blocks"]["mlp"]["fc1"]
    fc1["kernel"] = fc1["kernel"][::-1].copy()  # the two layers exchanged
    assert deviation() > 1e-2


def test_a_converted_classifier_keeps_its_labels(tmp_path):
    model = convert(PLUS / "model.pt", tmp_path / "model")
    description = read_description(model)
    assert description.kind == "emotion2vec_classifier"
    assert description.labels == [
        "angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "<unk>",
    ]  # fmt: skip
    assert description.extra["label_tokens"][0] == "生气/angry"
    assert description.extra["unused_labels"] == []
    assert description.model["normalize_waveform"] is True
    assert description.model["norm_epsilon"] == 1e-5
    assert read_params(model)["proj"]["kernel"].shape == (64, 9)


def test_unused_entries_are_marked_and_lists_must_fit(tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("angry\nunuse_0\nunuse_1\nhappy\nneutral\nunuse_2\nsad\nsurprised\n<unk>\n")
    model = convert(PLUS / "model.pt", tmp_path / "model", "--tokens", str(tokens))
    assert read_description(model).extra["unused_labels"] == ["unuse_0", "unuse_1", "unuse_2"]
    tokens.write_text("angry\nhappy\n")
    with pytest.raises(UserError, match="2 different labels"):
        convert(PLUS / "model.pt", tmp_path / "other", "--tokens", str(tokens))
    shutil.copy(PLUS / "model.pt", tmp_path / "alone.pt")
    tokens.unlink()
    with pytest.raises(UserError, match="--tokens"):
        convert(tmp_path / "alone.pt", tmp_path / "other")


def test_files_beside_the_source_are_read_and_named_ones_win(tmp_path):
    for name in ("model.pt", "tokens.txt", "config.yaml"):
        shutil.copy(PLUS / name, tmp_path / name)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("norm_eps: 1e-05", "norm_eps: 3e-06"))
    (tmp_path / "other.yaml").write_text(text.replace("norm_eps: 1e-05", "norm_eps: 2e-06"))
    model = convert(tmp_path / "model.pt", tmp_path / "beside")
    assert read_description(model).model["norm_epsilon"] == 3e-6
    other = tmp_path / "other.yaml"
    model = convert(tmp_path / "model.pt", tmp_path / "named", "--config", str(other))
    assert read_description(model).model["norm_epsilon"] == 2e-6
    other.write_text(text.replace("depth: 3", "depth: 4"))
    with pytest.raises(UserError, match="holds 3 layers where .* says depth 4"):
        convert(tmp_path / "model.pt", tmp_path / "third", "--config", str(other))
    (tmp_path / "config.yaml").unlink()
    model = convert(tmp_path / "model.pt", tmp_path / "own", "--normalize-waveform", "false")
    assert read_description(model).model["norm_epsilon"] == 1e-5
    assert read_description(model).model["normalize_waveform"] is False


def test_optimizer_and_teacher_are_carried(tmp_path):
    model = convert(TRAINED / "checkpoint_last.pt", tmp_path / "model", "--licence", "MIT")
    carried = read_carried(model)
    assert sum("exp_avg" in name for name in carried) == 138
    assert sum(name.startswith("model/_ema/") for name in carried) == 38
    description = read_description(model)
    assert description.licence == "MIT" and len(description.origin["sha256"]) == 64


def test_an_old_format_file_converts_to_the_same_parameters(tmp_path):
    tree = open_checkpoint(CONTROL).tree
    old = write(tmp_path, "old.pt", legacy_bytes(out_tree(tree)))
    a, b = convert(CONTROL, tmp_path / "a"), convert(old, tmp_path / "b")
    for name in ("params.safetensors", "carried.safetensors"):
        same = (a / name).read_bytes() == (b / name).read_bytes()
        assert same is (name == "params.safetensors")  # the carried notes tell the formats apart
    assert main(["verify", "emotion2vec", "--from", str(old), "--to", str(b)]) == 0


@pytest.mark.parametrize("case", [E2VS / "checkpoint.pt", PLUS / "model.pt"])
def test_safetensors_hold_enough_to_come_back(case, tmp_path):
    model = convert(case, tmp_path / "model")
    flat = tmp_path / "flat.safetensors"
    assert main(["export", "emotion2vec", "--from", str(model), "--to", str(flat)]) == 0
    state = open_checkpoint(case).tree["model"]
    stored = safetensors.numpy.load_file(flat)
    assert stored.keys() == state.keys()
    for name, tensor in state.items():
        assert stored[name].tobytes() == tensor.read().tobytes()
    again = convert(flat, tmp_path / "again")
    assert (again / "params.safetensors").read_bytes() == (
        model / "params.safetensors"
    ).read_bytes()
    first, second = read_description(model), read_description(again)
    assert first.model == second.model and first.labels == second.labels
    assert main(["verify", "emotion2vec", "--from", str(flat), "--to", str(again)]) == 0


@pytest.mark.parametrize("case", [TRAINED / "checkpoint_last.pt", PLUS / "model.pt"])
def test_a_model_that_never_was_a_checkpoint_is_exported_in_upstreams_words(case, tmp_path, capsys):
    model = convert(case, tmp_path / "model")
    (model / "carried.safetensors").unlink()
    file = tmp_path / "made.pt"
    assert main(["export", "emotion2vec", "--from", str(model), "--to", str(file)]) == 0
    assert "upstream's layout: the model was trained here" in capsys.readouterr().out
    source, made = open_checkpoint(case).tree["model"], open_checkpoint(file).tree["model"]
    tensors = {name: t for name, t in source.items() if isinstance(t, LazyTensor)}
    assert made.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert made[name].read().tobytes() == tensor.read().tobytes()
    again = convert(file, tmp_path / "again")
    assert read_description(again).model == read_description(model).model
    assert read_description(again).extra == read_description(model).extra
    assert read_description(again).labels == read_description(model).labels


@pytest.mark.parametrize(
    "leaf", ["encoder/blocks/attn/qkv/kernel", "model/_ema/blocks.0.norm1.bias"]
)
def test_verify_finds_one_changed_value(leaf, tmp_path, capsys):
    source = TRAINED / "checkpoint_last.pt"
    model = convert(source, tmp_path / "model")
    file = model / ("params" if leaf.startswith("encoder") else "carried")
    file = file.with_suffix(".safetensors")
    stored = {k: np.array(v) for k, v in safetensors.numpy.load_file(file).items()}
    stored[leaf].flat[3] = np.nextafter(stored[leaf].flat[3], np.float32(9))
    safetensors.numpy.save_file(stored, file)
    assert main(["verify", "emotion2vec", "--from", str(source), "--to", str(model)]) == 1
    assert "1 differ" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(1e-6, 0), (1e-3, 1), (np.nan, 1)])
def test_verify_compares_features_with_the_source(error, code, tmp_path, monkeypatch, capsys):
    model = convert(CONTROL, tmp_path / "model")
    monkeypatch.setattr(verify, "has_source_implementation", lambda: True)
    monkeypatch.setattr(verify, "our_features", lambda directory, wave: np.outer(wave, wave[:3]))
    monkeypatch.setattr(
        verify,
        "source_features",
        lambda checkpoint, directory, wave: np.outer(wave, wave[:3]) + error,
    )
    assert main(["verify", "emotion2vec", "--from", str(CONTROL), "--to", str(model)]) == code
    assert "largest deviation" in capsys.readouterr().out


def test_verify_says_when_the_source_is_not_installed(tmp_path, capsys):
    model = convert(CONTROL, tmp_path / "model")
    assert main(["verify", "emotion2vec", "--from", str(CONTROL), "--to", str(model)]) == 0
    assert "not compared, since FunASR" in capsys.readouterr().out


def mutated(tmp_path: Path, change) -> Path:
    tree = open_checkpoint(CONTROL).tree
    change(tree)
    write_torch(tmp_path / "changed.pt", out_tree(tree))
    return tmp_path / "changed.pt"


def test_other_parts_of_a_checkpoint_are_known_or_refused(tmp_path):
    def teacher(tree):
        tree["model"]["modality_encoders.IMAGE.extra_tokens"] = np.ones((1, 2), np.float32)
        tree["model"]["recon_proj.weight"] = np.ones((3, 3), np.float32)

    model = convert(mutated(tmp_path, teacher), tmp_path / "known")
    assert "model/recon_proj.weight" in read_carried(model)

    def stranger(tree):
        tree["model"]["blocks.0.gate.weight"] = np.ones((3, 3), np.float32)

    with pytest.raises(UserError, match="unmapped source: blocks.0.gate.weight"):
        convert(mutated(tmp_path, stranger), tmp_path / "unknown")

    def both(tree):
        tree["model"]["d2v_model.blocks.0.norm1.bias"] = tree["model"]["blocks.0.norm1.bias"]

    with pytest.raises(UserError, match="twice"):
        convert(mutated(tmp_path, both), tmp_path / "twice")

    def another_decoder(tree):
        tree["model"]["modality_encoders.AUDIO.decoder.proj.0.weight"] = tree["model"].pop(
            "modality_encoders.AUDIO.decoder.proj.weight"
        )

    model = convert(mutated(tmp_path, another_decoder), tmp_path / "decoder")
    assert read_description(model).kind == "emotion2vec"
    assert sum("decoder" in name for name in read_carried(model)) >= 4


def test_a_file_that_is_no_emotion2vec_is_refused(tmp_path):
    write_torch(tmp_path / "a.pt", out_tree({"model": {"w": np.ones(3, np.float32)}}))
    with pytest.raises(UserError, match="is not an emotion2vec checkpoint"):
        convert(tmp_path / "a.pt", tmp_path / "model")
    write_torch(tmp_path / "b.pt", {"model": [1, 2]})
    with pytest.raises(UserError, match="no state dict"):
        convert(tmp_path / "b.pt", tmp_path / "model")


def test_a_small_file_cannot_unfold_into_a_large_model(tmp_path):
    entry = {"dtype": "F32", "shape": [1 << 20], "data_offsets": [0, 4 << 20]}
    data = safetensors_bytes({"a": entry}, bytes(4 << 20))
    tree = open_checkpoint(write(tmp_path, "a.safetensors", data)).tree
    big = tree["a"]
    views = {f"_ema.{i}": LazyTensor((1 << 20,), big.dtype, big.extent, (1,)) for i in range(9)}
    from conversions.emotion2vec_import import _check_amount
    from conversions.source_tree import Carrier

    with pytest.raises(UserError, match="would unfold"):
        _check_amount(tmp_path / "a.safetensors", {}, Carrier(views, {}, {}))


def test_a_damaged_model_directory_is_refused_on_export(tmp_path):
    model = convert(CONTROL, tmp_path / "model")
    document = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(document | {"kind": "whisper"}))
    with pytest.raises(UserError, match="not an emotion2vec model"):
        main(["export", "emotion2vec", "--from", str(model), "--to", str(tmp_path / "a.pt")])
    (model / "config.json").write_text(json.dumps(document))
    stored = safetensors.numpy.load_file(model / "params.safetensors")
    stored = {k: np.array(v) for k, v in stored.items()}
    del stored["encoder/extra_tokens"]
    safetensors.numpy.save_file(stored, model / "params.safetensors")
    with pytest.raises(UserError, match="don't belong together"):
        main(["export", "emotion2vec", "--from", str(model), "--to", str(tmp_path / "a.pt")])
    assert not (tmp_path / "a.pt").exists()
