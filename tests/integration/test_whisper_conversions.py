"""Whisper checkpoints in three namings, whole and in shards: there, back bit by bit, or refused."""

import dataclasses
import json
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.training.checkpoint import (
    ModelDescription,
    flatten,
    leaves_of,
    read_carried,
    read_description,
    read_params,
    write_model,
)
from conversions.__main__ import main
from conversions.connector_names import (
    SPEECH_MARKS,
    SPEECH_TOKENS,
    join_speech_marks,
    split_speech_marks,
)
from conversions.export import write_flat
from conversions.model_folder import open_folder, open_source
from conversions.reader import open_checkpoint
from conversions.tensors import LazyTensor
from conversions.torch_writer import write_torch
from conversions.whisper_names import TABLES
from tests.golden_roots import golden_cases
from tests.integration.test_conversions import assert_equal_trees
from tests.parity.speech_weights import encoder_params
from tests.unit.conversions.files import out_tree, tensor

CASES = golden_cases("c2ser_llm/whisper_encoder")
SMALL = CASES[0] / "openai_encoder.pt"
CFG = WhisperEncoderConfig(width=64, depth=2, heads=4, mlp_width=256)
WENET_YAML = "encoder_conf:\n  attention_heads: 4\n  output_size: 64\n"
HF_CONFIG = {
    "model_type": "whisper", "num_mel_bins": 80, "d_model": 64, "encoder_layers": 2,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 256, "max_source_positions": 1500,
}  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return encoder_params(SMALL, CFG)


def named(params, title, prefix=""):
    """The encoder under one of the namings, with something of a decoder beside it."""
    tree = OrderedDict()
    for path, leaf in flatten({"encoder": params}).items():
        for name, shape, match in TABLES[title].sources(path, leaf.shape):
            if (part := match.within(leaf, shape)) is not None:
                tree[prefix + name] = np.ascontiguousarray(part)
    tree[prefix + "decoder.embed.weight"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    return tree


def write_folder(folder, tree, shards=1, config=HF_CONFIG):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text('{"feature_size": 80}')
    (folder / "notes.bin").write_bytes(b"stays behind")
    names = list(tree)
    if shards == 1:
        write_flat(folder / "model.safetensors", out_tree(dict(tree)), {"format": "pt"})
        return folder
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        part = {name: tensor(tree[name], tree[name].dtype) for name in names
                if weight_map[name] == file}  # fmt: skip
        write_flat(folder / file, part, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def convert(source, target, *options):
    assert main(["whisper", "--from", str(source), "--to", str(target), *options]) == 0
    return target


def same_params(model, params):
    found = flatten(read_params(model))
    wanted = flatten({"encoder": params})
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[path], wanted[path]) for path in wanted)


def sources(params, tmp_path):
    """{title: (source, options)}: every naming and container."""
    (tmp_path / "wenet.yaml").write_text(WENET_YAML)
    write_torch(tmp_path / "wenet.pt", out_tree(named(params, "wenet")))
    hugging_face = named(params, "Hugging Face")
    headed = named(params, "Hugging Face", "model.")
    headed["proj_out.weight"] = np.ones((2, 2), np.float32)
    return {
        "OpenAI": (SMALL, []),
        "wenet": (tmp_path / "wenet.pt", ["--config", str(tmp_path / "wenet.yaml")]),
        "folder": (write_folder(tmp_path / "hf", hugging_face), []),
        "with a head": (write_folder(tmp_path / "headed", headed), []),
        "shards": (write_folder(tmp_path / "shards", hugging_face, 3), []),
    }


def test_every_naming_comes_back_bit_by_bit(params, tmp_path, capsys):
    for title, (source, options) in sources(params, tmp_path).items():
        model = convert(source, tmp_path / f"{title} model", *options)
        description = read_description(model)
        assert description.kind == "whisper_encoder" and same_params(model, params)
        assert WhisperEncoderConfig.from_dict(description.model) == CFG
        assert str(tmp_path) not in json.dumps(dataclasses.asdict(description))
        back = tmp_path / (f"{title} back" + ("" if source.is_dir() else ".pt"))
        assert main(["export", "whisper", "--from", str(model), "--to", str(back)]) == 0
        assert_equal_trees(open_source(source).tree, open_source(back).tree)
        assert open_source(source).notes == open_source(back).notes
        assert main(["verify", "whisper", "--from", str(source), "--to", str(model)]) == 0
        assert " 0 differ" in capsys.readouterr().out
    assert not (tmp_path / "folder back" / "notes.bin").exists()
    assert {path.name for path in (tmp_path / "shards back").glob("*.safetensors")} == {
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    }
    assert "state_dict/decoder.embed.weight" in read_carried(tmp_path / "folder model")


@pytest.mark.parametrize(
    ("folder", "name", "options"),
    [
        (folder, name, options)
        for folder in CASES
        for name, options in (("hf", []), ("openai_whisper.pt", []), ("wenet_whisper.pt", ["yaml"]))
        if (folder / name).exists()  # the wider collection holds all three
    ],
)
def test_whole_golden_checkpoints_come_back_bit_by_bit(folder, name, options, params, tmp_path):
    (tmp_path / "wenet.yaml").write_text(WENET_YAML)
    options = ["--config", str(tmp_path / "wenet.yaml")] if options else []
    model = convert(folder / name, tmp_path / "model", *options)
    assert same_params(model, params)
    assert sum("decoder." in name for name in read_carried(model)) > 50
    back = tmp_path / "back.pt" if name.endswith(".pt") else tmp_path / "back"
    assert main(["export", "whisper", "--from", str(model), "--to", str(back)]) == 0
    assert assert_equal_trees(open_source(folder / name).tree, open_source(back).tree) > 80


def test_half_precision_comes_back_in_half_precision(params, tmp_path):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        tree = {k: v.astype(dtype) for k, v in named(params, "Hugging Face").items()}
        source = write_folder(tmp_path / np.dtype(dtype).name, tree)
        model = convert(source, tmp_path / f"{source.name} model")
        back = tmp_path / f"{source.name} back"
        assert main(["export", "whisper", "--from", str(model), "--to", str(back)]) == 0
        assert_equal_trees(open_folder(source).tree, open_folder(back).tree)


def test_an_encoder_trained_here_is_exported_under_hugging_faces_names(params, tmp_path):
    description = ModelDescription(kind="whisper_encoder", model=dataclasses.asdict(CFG))
    write_model(tmp_path / "model", description, leaves_of({"encoder": params}))
    file = tmp_path / "made.safetensors"
    assert main(["export", "whisper", "--from", str(tmp_path / "model"), "--to", str(file)]) == 0
    state = open_checkpoint(file).tree
    wanted = named(params, "Hugging Face")
    del wanted["decoder.embed.weight"]
    assert state.keys() == wanted.keys()
    assert all(np.array_equal(state[name].read(), wanted[name]) for name in wanted)


def refused(source, tmp_path, *options):
    with pytest.raises(UserError) as refusal:
        main(["whisper", "--from", str(source), "--to", str(tmp_path / "deep/model"), *options])
    assert "\n" not in str(refusal.value) and not (tmp_path / "deep").exists()
    return str(refusal.value)


def test_a_folder_with_something_missing_is_refused(params, tmp_path):
    tree = named(params, "Hugging Face")
    folder = write_folder(tmp_path / "a", tree, 3)
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model-00002", "../model-00002"))
    assert "no sound weight_map" in refused(folder, tmp_path)
    index.write_text("[" + text)
    assert "no valid JSON" in refused(folder, tmp_path)
    stray = json.loads(text)
    stray["weight_map"].pop("encoder.conv1.bias")
    index.write_text(json.dumps(stray))
    assert "don't agree about the tensor 'encoder.conv1.bias'" in refused(folder, tmp_path)
    index.write_text(text)
    (folder / "model-00002-of-00003.safetensors").unlink()
    sentence = refused(folder, tmp_path)
    assert "lacks model-00002-of-00003.safetensors, one of the 3 shards" in sentence
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in refused(tmp_path / "empty", tmp_path)
    (write_folder(tmp_path / "b", tree) / "config.json").unlink()
    assert "has no config.json" in refused(tmp_path / "b", tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused(params, tmp_path):
    tree = named(params, "Hugging Face")
    deep = write_folder(tmp_path / "deep_", tree, config=HF_CONFIG | {"encoder_layers": 3})
    assert "has depth 2 where" in refused(deep, tmp_path)
    heads = write_folder(
        tmp_path / "heads", tree, config=HF_CONFIG | {"encoder_attention_heads": 5}
    )
    assert "width 64 is not a multiple of heads 5" in refused(heads, tmp_path)
    other = write_folder(tmp_path / "other", tree, config={"model_type": "bert"})
    assert "describes no Whisper" in refused(other, tmp_path)
    swish = write_folder(
        tmp_path / "swish", tree, config=HF_CONFIG | {"activation_function": "swish"}
    )
    assert "activation_function is not 'gelu'" in refused(swish, tmp_path)

    def changed(name, value):
        copy = OrderedDict(tree)
        if value is None:
            del copy[name]
        else:
            copy[name] = value
        folder = tmp_path / f"changed{len(list(tmp_path.iterdir()))}"
        return refused(write_folder(folder, copy), tmp_path)

    fc2 = "encoder.layers.1.fc2.weight"
    assert f"wrong shape: {fc2}" in changed(fc2, np.zeros((64, 255), np.float32))
    assert "unfilled target: encoder/layers/fc2/kernel layer 1" in changed(fc2, None)
    gate = "encoder.layers.1.gate.weight"
    assert f"unmapped source: {gate}" in changed(gate, np.zeros(3, np.float32))
    bias = "encoder.layers.0.self_attn.k_proj.bias"
    assert "unknown target: encoder/layers/self_attn/k_proj/bias" in changed(
        bias, np.zeros(64, np.float32)
    )
    assert "holds NaN" in changed("encoder.conv1.bias", np.full(64, np.nan, np.float32))
    assert "is not a Whisper checkpoint" in changed("encoder.embed_positions.weight", None)


def test_a_file_that_does_not_tell_its_heads_is_refused(params, tmp_path):
    write_torch(tmp_path / "wenet.pt", out_tree(named(params, "wenet")))
    assert "number of its attention heads" in refused(tmp_path / "wenet.pt", tmp_path)
    (tmp_path / "train.yaml").write_text(WENET_YAML)
    convert(tmp_path / "wenet.pt", tmp_path / "model")
    assert read_description(tmp_path / "model").origin["config"] == "train.yaml"
    (tmp_path / "train.yaml").write_text(WENET_YAML.replace("output_size: 64", "output_size: 32"))
    assert "has width 64 where" in refused(tmp_path / "wenet.pt", tmp_path)


def test_options_and_models_of_another_family_are_refused(params, tmp_path):
    model = convert(SMALL, tmp_path / "model")
    assert "--tokens belongs to emotion2vec;" in refused(SMALL, tmp_path, "--tokens", "t")
    for family, word in (("emotion2vec", "not an emotion2vec model"), ("whisper", "exists")):
        target = tmp_path / ("x.pt" if family == "emotion2vec" else "model")
        with pytest.raises(UserError, match=word):
            main(["export", family, "--from", str(model), "--to", str(target)])
    emotion = golden_cases("emotion2vec/hostile")[0] / "valid_control.pt"
    assert "is not a Whisper checkpoint" in refused(emotion, tmp_path)


def test_verify_finds_one_changed_value(params, tmp_path, capsys):
    model = convert(SMALL, tmp_path / "model")
    changed = {path: np.array(leaf) for path, leaf in flatten(read_params(model)).items()}
    changed["encoder/layers/fc1/kernel"][1, 2, 3] += 1
    write_flat(model / "params.safetensors", {k: tensor(v) for k, v in changed.items()}, {})
    assert main(["verify", "whisper", "--from", str(SMALL), "--to", str(model)]) == 1
    assert "encoder.blocks.1.mlp.0.weight" in capsys.readouterr().out


def test_speech_marks_are_cut_out_of_their_table_and_put_back(tmp_path):
    table = np.arange(35, dtype=np.float32).reshape(7, 5)
    write_torch(tmp_path / "a.pt", {SPEECH_TOKENS: tensor(table), "x": tensor([1.0])})
    tensors = open_checkpoint(tmp_path / "a.pt").tree
    split = split_speech_marks(tensors)
    assert split.keys() == {SPEECH_MARKS, "x"} and isinstance(split[SPEECH_MARKS], LazyTensor)
    assert np.array_equal(split[SPEECH_MARKS].read(), table[5:])
    joined = join_speech_marks(table, table[5:] * 2)
    assert np.array_equal(joined[:5], table[:5]) and np.array_equal(joined[5:], table[5:] * 2)
