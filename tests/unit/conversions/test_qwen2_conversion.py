"""Qwen2 folders go in and come back bit for bit; what doesn't fit gets one sentence."""

import json
import shutil

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.qwen2 import Qwen2Config
from c2ser_jax.training.checkpoint import flatten, read_description, read_params
from conversions.__main__ import main
from conversions.model_folder import write_folder
from conversions.reader import open_checkpoint
from conversions.torch_writer import OutTensor
from tests.golden_roots import golden_cases

GOLDEN = golden_cases("c2ser_llm/qwen2")[0]
UNTIED, ADAPTER = GOLDEN / "untied", GOLDEN / "lora_adapter"


def tensors_of(folder) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in open_checkpoint(path).tree.items():
            found[name] = (tensor.dtype.name, tensor.shape, tensor.read().tobytes())
    return found


def write_sharded(folder, dtype="float32"):
    """The golden model in two shards, in another precision on request, with a tokenizer file."""
    tree = open_checkpoint(UNTIED / "model.safetensors").tree
    weight_map = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(tree)}
    state = {}
    for name, tensor in tree.items():
        values = tensor.read().astype(np.dtype(dtype))
        state[name] = OutTensor(tensor.shape, values.dtype, lambda values=values: values)
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    config = (UNTIED / "config.json").read_bytes()
    files = {"config.json": config, "model.safetensors.index.json": index, "vocab.json": b"{}"}
    notes = {"format": "pt", "weight_map": json.dumps(weight_map)}
    write_folder(folder, {"files": files, "state_dict": state}, notes)
    return folder


def convert(source, target, *more):
    return main(["qwen2", "--from", str(source), "--to", str(target), *map(str, more)])


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_a_folder_comes_back_bit_for_bit(tmp_path, kind, capsys):
    assert convert(GOLDEN / kind, tmp_path / "model") == 0
    assert (
        main(["verify", "qwen2", "--from", str(GOLDEN / kind), "--to", str(tmp_path / "model")])
        == 0
    )
    assert (
        main(["export", "qwen2", "--from", str(tmp_path / "model"), "--to", str(tmp_path / "out")])
        == 0
    )
    assert tensors_of(tmp_path / "out") == tensors_of(GOLDEN / kind)
    assert (tmp_path / "out" / "config.json").read_bytes() == (
        GOLDEN / kind / "config.json"
    ).read_bytes()
    assert "0 differ" in capsys.readouterr().out


def test_shards_in_half_precision_stay_so(tmp_path):
    source = write_sharded(tmp_path / "source", "bfloat16")
    convert(source, tmp_path / "model", "--lora", ADAPTER)
    cfg = Qwen2Config.from_dict(read_description(tmp_path / "model").model)
    assert cfg.param_dtype == "bfloat16" and cfg.lora.rank == 4 and cfg.lora.alpha == 8.0
    for path, leaf in flatten(read_params(tmp_path / "model")).items():
        assert leaf.dtype.name == ("float32" if "lora_" in path else "bfloat16")
    assert (tmp_path / "model" / "tokenizer" / "vocab.json").read_bytes() == b"{}"
    main(["export", "qwen2", "--from", str(tmp_path / "model"), "--to", str(tmp_path / "out")])
    assert tensors_of(tmp_path / "out") == tensors_of(source)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 2
    assert tensors_of(tmp_path / "out" / "lora_adapter") == tensors_of(ADAPTER)


def lose_shard(folder):
    (folder / "model-2.safetensors").unlink()


def misplace_tensor(folder):
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["lm_head.weight"] = "model-2.safetensors"
    index.write_text(json.dumps(document))


def another_depth(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def sliding(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_sliding_window": True}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lose_shard, "lacks model-2.safetensors"),
        (misplace_tensor, "don't agree about the tensor 'lm_head.weight'"),
        (another_depth, "unfilled target"),
        (sliding, "use_sliding_window is true"),
    ],
)
def test_a_folder_that_does_not_fit_gets_a_sentence(tmp_path, damage, sentence):
    source = write_sharded(tmp_path / "source")
    damage(source)
    with pytest.raises(UserError, match=sentence):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"r": 8}, "factors of rank 4 where its adapter_config.json says r 8"),
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_an_adapter_that_does_not_fit_gets_a_sentence(tmp_path, change, sentence):
    adapter = shutil.copytree(ADAPTER, tmp_path / "adapter", copy_function=shutil.copyfile)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=sentence):
        convert(UNTIED, tmp_path / "model", "--lora", adapter)
    with pytest.raises(UserError, match="unknown target|wrong shape"):
        convert(GOLDEN / "tied", tmp_path / "model", "--lora", ADAPTER)
    assert not (tmp_path / "model").exists()
