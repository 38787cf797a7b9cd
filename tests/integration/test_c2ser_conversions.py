"""C2SER's checkpoint with its two companions: one directory, back bit by bit, or refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml

from c2ser_jax.data.labels import EMO_EMILIA
from c2ser_jax.errors import UserError
from c2ser_jax.models import lora
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.training.checkpoint import (
    flatten,
    leaves_of,
    read_carried,
    read_description,
    read_params,
    write_model,
)
from conversions.__main__ import main
from conversions.c2ser_config import LABELS, PUBLISHED_PROMPTS
from conversions.export import write_flat
from conversions.reader import open_checkpoint
from conversions.tensors import LazyTensor, same_values
from conversions.torch_writer import write_torch
from tests.golden_conversion import ACOUSTIC, GOLDEN, arguments, convert, write_acoustic
from tests.golden_roots import golden_cases
from tests.integration.test_conversions import assert_equal_trees
from tests.unit.conversions.files import out_tree, tensor

ROOT = Path(__file__).resolve().parents[2]
LLM = "llama_model.base_model.model."


@pytest.fixture(scope="module")
def acoustic(tmp_path_factory):
    return write_acoustic(tmp_path_factory.mktemp("acoustic") / "e2vs.pt")


@pytest.fixture(scope="module")
def model(acoustic):
    return convert(acoustic.parent / "model", acoustic)


def state_of(name="checkpoint.pt") -> dict[str, LazyTensor]:
    return OrderedDict(open_checkpoint(GOLDEN / name).tree)


def write_state(path: Path, state: dict) -> Path:
    """A checkpoint of lazy tensors and arrays."""
    write_torch(path, out_tree(state))
    return path


def write_llm(folder: Path, shards: int = 0, dtype=np.float32, **changes) -> Path:
    """The golden Qwen2 folder, in `shards` with its weights; changes to its config.json."""
    shutil.copytree(GOLDEN / "llm", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    state = {
        name.removeprefix(LLM).replace(".base_layer", ""): value.read().astype(dtype)
        for name, value in state_of().items()
        if name.startswith(LLM) and ".lora_" not in name
    }
    names, weight_map = list(state), {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        weight_map |= dict.fromkeys(part, file)
        tensors = {name: tensor(state[name], dtype) for name in part}
        write_flat(folder / file, tensors, {"format": "pt"})
    if shards:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def export(directory: Path, target: Path) -> Path:
    assert main(["export", "c2ser", "--from", str(directory), "--to", str(target)]) == 0
    return target


def again(folder: Path, target: Path, name="C2SER_llm.pt", acoustic="emotion2vec.pt") -> Path:
    """Converts an exported folder."""
    told = ["--from", folder / name, "--llm", folder / "llm", "--to", target]
    command = ["c2ser", *told, "--emotion2vec", folder / "emotion2vec" / acoustic]
    assert main([str(part) for part in command]) == 0
    return target


def same_params(a: Path, b: Path) -> bool:
    ours, theirs = flatten(read_params(a)), flatten(read_params(b))
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_the_directory_explains_itself(model):
    description = read_description(model)
    cfg = C2serConfig.from_dict(description.model)
    assert description.kind == "c2ser" and tuple(EMO_EMILIA) == LABELS
    assert description.labels == list(LABELS)
    assert cfg.acoustic_tokens == "published" and cfg.acoustic == ACOUSTIC
    assert cfg.llm.lora == lora.LoraConfig(rank=4, alpha=8.0, dropout=0.1)
    assert cfg.encoder.dropout == 0.1 and cfg.connector.heads == 4
    assert description.extra["eos"] == [480] and description.extra["languages"] == ["en", "zh"]
    prompts = {mode: {"en": text} for mode, text in PUBLISHED_PROMPTS.items()}
    assert description.extra["prompts"] == prompts
    assert {path.name for path in (model / "tokenizer").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
        "generation_config.json",
    }  # fmt: skip
    assert str(model.parent) not in (model / "config.json").read_text()
    carried = {name.removeprefix("checkpoint/") for name in read_carried(model)}
    assert carried == {  # known and not loaded; the aliases are references
        "ln_speech.weight", "ln_speech.bias", "speaker_head.weight", "speaker_head.bias",
        "speech_token_emded.weight", "source_tree.json",
    }  # fmt: skip
    marks = read_params(model)["connector"]["speech_marks"]
    assert np.array_equal(marks, state_of()["speech_token_emded.weight"].read()[-2:])


@pytest.mark.parametrize("file", ["checkpoint.pt", "checkpoint_bf16.pt"])
def test_everything_comes_back_bit_by_bit(acoustic, tmp_path, file, capsys):
    """From shards in bfloat16, whose numbers a bfloat16 checkpoint repeats."""
    is_half = "bf16" in file
    dtype = ml_dtypes.bfloat16 if is_half else np.float32
    llm = write_llm(tmp_path / "qwen2", shards=3, dtype=dtype)
    options = ("--llm", str(llm))
    directory = convert(tmp_path / "model", acoustic, *options, checkpoint=GOLDEN / file)
    leaves = flatten(read_params(directory))
    assert leaves["llm/norm/scale"].dtype.name == ("bfloat16" if is_half else "float32")
    assert leaves["encoder/positions"].dtype == np.float32
    back = export(directory, tmp_path / "back")
    found, wanted = open_checkpoint(back / file), open_checkpoint(GOLDEN / file)
    assert assert_equal_trees(wanted.tree, found.tree) == 174
    for alias, own in {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}.items():
        pair = [found.tree[name + ".weight"].extent for name in (alias, LLM + own)]
        assert pair[0] == pair[1]  # one stored part under two names
    tree = open_checkpoint(back / "emotion2vec" / acoustic.name).tree
    assert assert_equal_trees(open_checkpoint(acoustic).tree, tree) > 40
    assert {p.name for p in llm.iterdir()} == {p.name for p in (back / "llm").iterdir()}
    for path in llm.iterdir():
        if path.suffix == ".safetensors":
            shard = open_checkpoint(back / "llm" / path.name).tree
            assert_equal_trees(open_checkpoint(path).tree, shard)
        else:
            assert (back / "llm" / path.name).read_bytes() == path.read_bytes()
    assert (back / "config.yaml").read_bytes() == (GOLDEN / "config.yaml").read_bytes()
    command = ["verify", "c2ser", "--from", str(GOLDEN / file), "--to", str(directory)]
    assert main([*command, "--llm", str(llm), "--emotion2vec", str(acoustic)]) == 0
    assert main(command) == 0
    told = capsys.readouterr().out
    assert told.count(" 0 differ") == 4 and "emotion2vec: not compared" in told


def test_all_sources_may_lie_in_one_folder(acoustic, model, tmp_path):
    """Then config.yaml is the checkpoint's, and not taken for Emotion2Vec-S's."""
    for path in (GOLDEN / "checkpoint.pt", GOLDEN / "config.yaml", acoustic):
        shutil.copy(path, tmp_path)
    command = ["c2ser", "--from", tmp_path / "checkpoint.pt", "--llm", GOLDEN / "llm"]
    command += ["--emotion2vec", tmp_path / acoustic.name, "--to", tmp_path / "model"]
    assert main([str(word) for word in command]) == 0
    assert same_params(tmp_path / "model", model)
    assert (
        read_description(tmp_path / "model").origin["acoustic encoder"]["config"] == "its own cfg"
    )


def test_verify_finds_one_changed_value(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    leaves = {path: np.array(leaf) for path, leaf in flatten(read_params(model)).items()}
    leaves["llm/layers/mlp/up_proj/kernel"][1, 2, 3] += 1
    leaves["connector/speech_marks"][0, 0] += 1
    file = tmp_path / "model" / "params.safetensors"
    write_flat(file, {k: tensor(v, v.dtype) for k, v in leaves.items()}, {})
    command = ["verify", "c2ser", "--from", str(GOLDEN / "checkpoint.pt")]
    assert main([*command, "--to", str(tmp_path / "model")]) == 1
    told = capsys.readouterr().out
    assert "layers.1.mlp.up_proj.weight" in told and "speech_token_emded" in told
    assert "2 differ" in told


def test_the_folder_fills_what_the_checkpoint_lacks(acoustic, model, tmp_path, capsys):
    """The frozen language model left out, with its aliases: the same model, and back."""
    llm = write_llm(tmp_path / "qwen2", shards=2)
    state = {
        name: value
        for name, value in state_of().items()
        if (not name.startswith(LLM) or ".lora_" in name) and name not in ("embed_tokens.weight",)
        and name != "lm_head.weight"
    }  # fmt: skip
    file = write_state(tmp_path / "small.pt", state)
    directory = convert(tmp_path / "model", acoustic, "--llm", str(llm), checkpoint=file)
    assert same_params(directory, model)
    assert "27 tensors of qwen2" in capsys.readouterr().out
    back = export(directory, tmp_path / "back")
    assert_equal_trees(open_checkpoint(file).tree, open_checkpoint(back / "small.pt").tree)
    for shard in llm.glob("*.safetensors"):
        found = open_checkpoint(back / "llm" / shard.name).tree
        assert_equal_trees(open_checkpoint(shard).tree, found)


def test_the_checkpoints_language_model_wins(acoustic, model, tmp_path, capsys):
    llm = write_llm(tmp_path / "qwen2", shards=2, dtype=np.float16)  # other numbers
    directory = convert(tmp_path / "model", acoustic, "--llm", str(llm))
    assert same_params(directory, model)
    assert "that differ from the checkpoint's own" in capsys.readouterr().out
    command = ["verify", "c2ser", "--from", str(GOLDEN / "checkpoint.pt"), "--llm", str(llm)]
    assert main([*command, "--to", str(directory)]) == 0
    assert "tensors were not kept" in capsys.readouterr().out
    files = {path.name for path in (export(directory, tmp_path / "back") / "llm").iterdir()}
    assert "config.json" in files and "model.safetensors.index.json" not in files


@pytest.mark.parametrize("kind", ["absent", "instead", "other"])
def test_aliases_may_be_there_or_not(acoustic, model, tmp_path, kind):
    state = state_of()
    alias, own = "embed_tokens.weight", LLM + "model.embed_tokens.weight"
    if kind == "absent":
        del state[alias], state["lm_head.weight"]
    elif kind == "instead":
        del state[own]
    else:
        state[alias] = np.ones((512, 64), np.float32)
    file = write_state(tmp_path / "a.pt", state)
    directory = convert(tmp_path / "model", acoustic, checkpoint=file)
    assert same_params(directory, model)
    assert (f"checkpoint/{alias}" in read_carried(directory)) == (kind == "other")
    back = export(directory, tmp_path / "back")
    assert_equal_trees(open_checkpoint(file).tree, open_checkpoint(back / "a.pt").tree)


@pytest.mark.parametrize(("file", "tolerance"), [("", 1e-6), ("checkpoint_bf16.pt", 1e-2)])
def test_merged_adapters_equal_those_of_the_model(acoustic, model, tmp_path, file, tolerance):
    """Up to a unit in the last place of the kernels' type."""
    checkpoint = GOLDEN / file if file else None
    kept = convert(tmp_path / "kept", acoustic, checkpoint=checkpoint) if file else model
    merged = convert(tmp_path / "merged", acoustic, "--lora", "merge", checkpoint=checkpoint)
    assert C2serConfig.from_dict(read_description(merged).model).llm.lora is None
    wanted = flatten(lora.merge(read_params(kept)["llm"], 8.0 / 4))
    found = flatten(read_params(merged)["llm"])
    assert found.keys() == wanted.keys()
    for path, leaf in found.items():
        assert leaf.dtype == wanted[path].dtype
        difference = np.abs(np.float32(leaf) - np.float32(wanted[path]))
        assert difference.max() <= tolerance * np.abs(np.float32(leaf)).max(), path


def test_merged_adapters_are_exported_as_a_model_without(acoustic, tmp_path, capsys):
    merged = convert(tmp_path / "merged", acoustic, "--lora", "merge")
    back = export(merged, tmp_path / "back")
    assert "adapters stay merged" in capsys.readouterr().out
    assert same_params(again(back, tmp_path / "again", "checkpoint.pt", acoustic.name), merged)
    command = ["verify", "c2ser", "--from", str(GOLDEN / "checkpoint.pt"), "--to", str(merged)]
    with pytest.raises(UserError, match="has merged adapters"):
        main(command)


def test_a_model_trained_here_is_exported_under_upstreams_names(model, tmp_path):
    description, params = read_description(model), read_params(model)
    values = description.model | {"acoustic_tokens": "model", "inputs": "acoustic"}
    tokenizer = {path.name: path.read_bytes() for path in (model / "tokenizer").iterdir()}
    write_model(
        tmp_path / "model",
        dataclasses.replace(description, model=values, origin={}),
        leaves_of(params),
        tokenizer=tokenizer,
    )
    back = export(tmp_path / "model", tmp_path / "back")
    names = open_checkpoint(back / "C2SER_llm.pt").tree.keys()
    left_out = {"ln_speech", "speaker_head"}
    assert names == {name for name in state_of() if name.split(".")[0] not in left_out}
    made = again(back, tmp_path / "again")
    assert same_params(made, model)
    found = read_description(made)
    assert found.model == json.loads(json.dumps(values)) and found.extra == description.extra


def refused(target: Path, acoustic: Path, *more, **options) -> str:
    with pytest.raises(UserError) as refusal:
        main(arguments(target / "deep/model", acoustic, *map(str, more), **options))
    assert "\n" not in str(refusal.value) and not (target / "deep").exists()
    return str(refusal.value)


def test_a_wrong_language_model_is_refused(acoustic, tmp_path):
    for name, value, word in (
        ("hidden_size", 32, "has width 64 where"),
        ("vocab_size", 500, "has vocabulary 512 where"),
        ("num_hidden_layers", 3, "has depth 2 where"),
        ("intermediate_size", 96, "has mlp_width 128 where"),
        ("num_attention_heads", 8, "wrong shape: "),
    ):
        llm = write_llm(tmp_path / name, **{name: value})
        sentence = refused(tmp_path, acoustic, "--llm", llm)
        assert word in sentence and "--llm" in sentence
    shards = write_llm(tmp_path / "shards", shards=3)
    (shards / "model-00002-of-00003.safetensors").unlink()
    sentence = refused(tmp_path, acoustic, "--llm", shards)
    assert "lacks model-00002-of-00003.safetensors, one of the 3 shards" in sentence
    state = {name: value for name, value in state_of().items() if LLM + "model.norm" not in name}
    file = write_state(tmp_path / "a.pt", state)
    sentence = refused(tmp_path, acoustic, checkpoint=file)
    assert "unfilled target: llm/norm/scale" in sentence
    (shards / "config.json").unlink()
    shutil.rmtree(tmp_path / "vocab_size")
    for path in shards.glob("model*"):
        path.unlink()
    assert "has no config.json" in refused(tmp_path, acoustic, "--llm", shards)
    assert "is not a folder" in refused(tmp_path, acoustic, "--llm", tmp_path / "nowhere")


def test_a_tokenizer_that_does_not_fit_the_weights_is_refused(acoustic, tmp_path):
    llm = write_llm(tmp_path / "qwen2")
    whole = json.loads((llm / "tokenizer.json").read_text())
    grown = whole | {"added_tokens": [{"id": 512, "content": "<|more|>"}]}
    (llm / "tokenizer.json").write_text(json.dumps(grown))
    sentence = refused(tmp_path, acoustic, "--llm", llm)
    assert "has the id 512, the weights have 512 rows" in sentence
    small = whole | {"added_tokens": []}
    (llm / "tokenizer.json").write_text(json.dumps(small))
    assert "lacks the id 480, which ends a text" in refused(tmp_path, acoustic, "--llm", llm)
    (llm / "tokenizer.json").write_text("{")
    assert "no valid JSON" in refused(tmp_path, acoustic, "--llm", llm)
    (llm / "tokenizer.json").unlink()
    config = write_config(tmp_path / "config.yaml", dataset_conf=None)
    more = ("--llm", str(llm), "--config", str(config))
    older = convert(tmp_path / "older", acoustic, *more)  # vocab.json and merges.txt do
    assert "eos" not in read_description(older).extra  # the folder's may be that of its chats
    (llm / "vocab.json").unlink()
    assert "has no tokenizer" in refused(tmp_path, acoustic, "--llm", llm)


def write_config(path: Path, **changes) -> Path:
    """The golden config.yaml with other entries; None leaves one out."""
    document = yaml.safe_load((GOLDEN / "config.yaml").read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


def test_a_config_that_does_not_fit_is_refused(acoustic, tmp_path):
    for changes, word in (
        ({"lora_rank": 8}, "has adapters of rank 4 where"),
        ({"lora_alpha": None}, "lacks lora_alpha"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many', wanted float"),
        ({"use_lora": False}, "use_lora false"),
        ({"ssl_dim": 40}, "was trained with vectors of 40"),
        ({"c2ser_jax": {"inputs": "smell"}}, "inputs is 'smell'"),
        ({"c2ser_jax": {"input": "both"}}, "c2ser_jax has no field 'input'"),
        ({"connector_conf": {"linear_units": 128}}, "a connector of mlp_width 160 where"),
        ({"connector_conf": {"attention_heads": 5}}, "width 48 is not a multiple of heads 5"),
        ({"encoder_conf": {"attention_heads": 4, "num_blocks": 3}}, "has depth 2 where"),
        ({"encoder_conf": 4}, "describes no C2SER"),
        ({"dataset_conf": {"log_mel_spectrogram_conf": {"hop_length": 200}}}, "hop_length is 200"),
    ):
        file = write_config(tmp_path / "config.yaml", **changes)
        assert word in refused(tmp_path, acoustic, "--config", file)
    missing = tmp_path / "none.yaml"
    assert "none.yaml is missing" in refused(tmp_path, acoustic, "--config", missing)
    command = arguments(tmp_path / "model", acoustic, checkpoint=shutil.copy(
        GOLDEN / "checkpoint.pt", tmp_path / "checkpoint.pt"))  # fmt: skip
    (tmp_path / "config.yaml").unlink()
    told = command.index("--config")
    with pytest.raises(UserError, match="config.yaml is missing: the scale of the adapters"):
        main(command[:told] + command[told + 2 :])


def test_an_emotion2vec_that_is_too_wide_is_refused(acoustic, tmp_path):
    wide = golden_cases("emotion2vec/e2vs_tiny")[0] / "checkpoint.pt"
    sentence = refused(tmp_path, wide)
    assert "is 96 wide, more than the encoder of checkpoint.pt (48)" in sentence
    assert "can be padded but not cut" in sentence


def test_sources_of_another_kind_are_refused(acoustic, tmp_path):
    whisper = golden_cases("c2ser_llm/whisper_encoder")[0] / "openai_encoder.pt"
    assert "is not a C2SER checkpoint" in refused(tmp_path, acoustic, checkpoint=whisper)
    assert "is not an emotion2vec checkpoint" in refused(tmp_path, whisper)
    state = state_of() | {"visual_encoder.weight": np.ones(3, np.float32)}
    file = write_state(tmp_path / "a.pt", state)
    sentence = refused(tmp_path, acoustic, checkpoint=file)
    assert "unmapped source: visual_encoder.weight" in sentence
    state = state_of() | {LLM + "model.norm.weight": np.full(64, np.nan, np.float32)}
    sentence = refused(tmp_path, acoustic, checkpoint=write_state(tmp_path / "b.pt", state))
    assert "model.norm.weight holds NaN" in sentence
    assert "is 'melt': for c2ser" in refused(tmp_path, acoustic, "--lora", "melt")
    assert "--tokens belongs to emotion2vec" in refused(tmp_path, acoustic, "--tokens", "x")
    for left_out in ("--llm", "--emotion2vec"):
        command = arguments(tmp_path / "model", acoustic)
        place = command.index(left_out)
        with pytest.raises(UserError, match=f"c2ser needs {left_out} "):
            main(command[:place] + command[place + 2 :])


def test_the_command_refuses_with_exit_code_2_and_one_line(acoustic, tmp_path):
    command = arguments(tmp_path / "model", acoustic, "--config", str(tmp_path / "none.yaml"))
    ran = subprocess.run(
        [sys.executable, "-m", "conversions", *command],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "missing" in ran.stderr
    assert not (tmp_path / "model").exists()


def test_a_damaged_directory_is_not_exported(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    carried = dict(read_carried(model))
    document = json.loads(bytes(carried["source_tree.json"]))
    for key, value in (("prefix", 3), ("names", {"checkpoint": "../x"}), ("merged", None)):
        notes = document["notes"] | {key: value}
        text = json.dumps(document | {"notes": notes}).encode()
        leaves = carried | {"source_tree.json": np.frombuffer(text, np.uint8)}
        file = tmp_path / "model" / "carried.safetensors"
        write_flat(file, {k: tensor(v, v.dtype) for k, v in leaves.items()}, {})
        with pytest.raises(UserError, match="damaged copy"):
            export(tmp_path / "model", tmp_path / "back")
    shutil.copy(model / "carried.safetensors", tmp_path / "model")
    leaves = {k: v for k, v in flatten(read_params(model)).items() if k != "llm/norm/scale"}
    file = tmp_path / "model" / "params.safetensors"
    write_flat(file, {k: tensor(v, v.dtype) for k, v in leaves.items()}, {})
    with pytest.raises(UserError, match="lacks the parameter that .*norm.weight"):
        export(tmp_path / "model", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_equal_numbers_are_found_across_types(tmp_path):
    values = np.linspace(-3, 3, 24).reshape(4, 6).astype(ml_dtypes.bfloat16)
    other = values.astype(np.float32)
    changed = other.copy()
    changed[3, 5] += 1e-6
    tree = {"half": tensor(values, values.dtype), "whole": tensor(other), "other": tensor(changed),
            "scalar": tensor(3.0), "flat": tensor(other.reshape(-1))}  # fmt: skip
    write_torch(tmp_path / "a.pt", tree)
    read = open_checkpoint(tmp_path / "a.pt").tree
    assert same_values(read["half"], read["whole"]) and same_values(read["whole"], read["half"])
    assert same_values(read["half"], read["half"]) and same_values(read["scalar"], read["scalar"])
    assert not same_values(read["half"], read["other"])
    assert not same_values(read["whole"], read["flat"])
