"""The engine's views go both ways exactly, and its four lists name what doesn't fit."""

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from conversions import tensors
from conversions.engine import Rule, Table, convolution, elements, linear, plan, unit_axes
from conversions.reader import open_checkpoint
from conversions.source_tree import TREE_LEAF, Carrier, read_tree
from conversions.torch_writer import write_torch
from tests.unit.conversions.files import out_tree

TABLE = Table(
    [
        Rule("stem.{i}.weight", "stem/conv_{i}/kernel", convolution),
        Rule("pos.{next}.weight", "pos/conv_{i}/kernel", convolution),
        Rule("blocks.{layer}.fc.weight", "blocks/fc/kernel", linear),
        Rule("blocks.{layer}.fc.bias", "blocks/fc/bias"),
        Rule("scale", "scale", unit_axes, lambda shape: (1, *shape, 1)),
    ]
)
SHAPES = {
    "stem/conv_0/kernel": (3, 1, 5),
    "stem/conv_1/kernel": (2, 5, 7),
    "pos/conv_0/kernel": (9, 4, 8),
    "blocks/fc/kernel": (3, 5, 4),
    "blocks/fc/bias": (3, 4),
    "scale": (1, 6),
}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "stem.0.weight": (5, 1, 3),
        "stem.1.weight": (7, 5, 2),
        "pos.1.weight": (8, 4, 9),
        **{f"blocks.{i}.fc.weight": (4, 5) for i in range(3)},
        **{f"blocks.{i}.fc.bias": (4,) for i in range(3)},
        "scale": (1, 1, 6, 1, 1),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def opened(tmp_path, values: dict):
    write_torch(tmp_path / "a.pt", out_tree(values))
    return open_checkpoint(tmp_path / "a.pt").tree


def planned(tmp_path, values: dict, shapes=SHAPES):
    return plan(TABLE, opened(tmp_path, values), shapes, source="a.pt", hint="Look again")


def gathered(tmp_path, values: dict) -> dict[str, np.ndarray]:
    return {name: make() for name, _, _, make in planned(tmp_path, values).leaves()}


def test_every_view_puts_the_values_where_they_belong(tmp_path):
    source = arrays()
    got = gathered(tmp_path, source)
    assert {name: leaf.shape for name, leaf in got.items()} == SHAPES
    for i in range(2):
        expected = source[f"stem.{i}.weight"].transpose(2, 1, 0)
        assert np.array_equal(got[f"stem/conv_{i}/kernel"], expected)
    assert np.array_equal(got["pos/conv_0/kernel"], source["pos.1.weight"].transpose(2, 1, 0))
    for layer in range(3):
        assert np.array_equal(got["blocks/fc/kernel"][layer], source[f"blocks.{layer}.fc.weight"].T)
        assert np.array_equal(got["blocks/fc/bias"][layer], source[f"blocks.{layer}.fc.bias"])
    assert np.array_equal(got["scale"], source["scale"].reshape(1, 6))
    assert elements(SHAPES) == sum(leaf.size for leaf in got.values())


def test_the_same_views_lead_back(tmp_path):
    source = arrays()
    got = gathered(tmp_path, source)
    for name, values in source.items():
        match = TABLE.match(name)
        part = match.within(got[match.target], values.shape)
        assert part.tobytes() == values.tobytes()


def test_sources_of_a_parameter_are_named_without_a_source(tmp_path):
    names = {}
    for path, shape in SHAPES.items():
        names |= {name: wanted for name, wanted, _ in TABLE.sources(path, shape)}
    expected = {name: values.shape for name, values in arrays().items()}
    assert names == expected | {"scale": (1, 1, 6, 1)}


def test_small_blocks_give_the_same_parameters(tmp_path, monkeypatch):
    whole = gathered(tmp_path, arrays())
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 20)
    for name, leaf in gathered(tmp_path, arrays()).items():
        assert np.array_equal(leaf, whole[name])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_become_float32(tmp_path, dtype):
    source = {name: values.astype(dtype) for name, values in arrays().items()}
    got = gathered(tmp_path, source)
    assert got["scale"].dtype == np.float32
    assert np.array_equal(got["scale"].ravel(), source["scale"].astype(np.float32).ravel())


@pytest.mark.parametrize("value", [1e300, 0.1, 1e-300])
def test_float64_weights_that_float32_cannot_hold_are_refused(tmp_path, value):
    source = arrays()
    source["blocks.1.fc.bias"] = np.array([1, 2, value, 4], np.float64)
    with pytest.raises(UserError, match=r"blocks\.1\.fc\.bias holds float64.*model\.float"):
        gathered(tmp_path, source)


def damaged(name, value):
    source = arrays()
    if value is None:
        del source[name]
    else:
        source[name] = value
    return source


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("extra\nweight", np.zeros(3, np.float32), r"unmapped source: extra\?weight"),
        ("extra.weight", np.zeros(3, np.float32), "unmapped source: extra.weight"),
        ("blocks.03.fc.bias", np.zeros(4, np.float32), "unmapped source: blocks.03.fc.bias"),
        ("scale", None, "unfilled target: scale"),
        ("blocks.1.fc.bias", None, "unfilled target: blocks/fc/bias layer 1"),
        ("stem.2.weight", np.zeros((1, 1, 1), np.float32), "unknown target: stem/conv_2/kernel"),
        ("blocks.3.fc.bias", np.zeros(4, np.float32), "wrong shape: .* is layer 3"),
        ("blocks.0.fc.weight", np.zeros((5, 4), np.float32), r"wrong shape: .* is \[5, 4\]"),
        ("scale", np.zeros((6, 1, 1, 1, 2), np.float32), "wrong shape: scale"),
        ("scale", np.zeros((1, 1, 6, 1, 1), np.int64), "wrong shape: scale is int64"),
    ],
)
def test_what_does_not_fit_is_named_in_its_list(tmp_path, name, value, sentence):
    with pytest.raises(UserError, match=f"{sentence}.*Look again") as refusal:
        planned(tmp_path, damaged(name, value))
    assert "\n" not in str(refusal.value)


def test_several_lists_come_in_one_sentence(tmp_path):
    source = damaged("scale", None)
    source["extra"] = np.zeros(2, np.float32)
    with pytest.raises(UserError, match="unmapped source: extra; unfilled target: scale"):
        planned(tmp_path, source)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    source = arrays()
    source["blocks.2.fc.weight"][1, 3] = value
    leaves = {name: make for name, _, _, make in planned(tmp_path, source).leaves()}
    leaves["blocks/fc/bias"]()
    with pytest.raises(UserError, match="blocks.2.fc.weight holds NaN"):
        leaves["blocks/fc/kernel"]()


def test_a_tree_comes_back_with_its_tensors_in_place(tmp_path):
    tree = opened(
        tmp_path,
        {
            "model": {"w": np.ones((2, 3), np.float32), "_ema": {"w": np.zeros(4, np.float32)}},
            "odd": [(1, None), {3: float("nan"), "b": b"\x01"}, np.ones(2, np.complex64)],
        },
    )
    weights = {id(tree["model"]["w"]): "w"}
    carrier = Carrier(tree, weights, {"state_path": ["model"]})
    stored = {name: make() for name, _, _, make in carrier.leaves()}
    assert set(stored) == {TREE_LEAF, "model/_ema/w", "odd/2"}
    back, notes = read_tree(
        stored, lambda *weight: weight, lambda name, array: (name, array), "a model"
    )
    assert notes == {"state_path": ["model"]}
    assert back["model"]["w"] == ("w", np.float32, (2, 3))
    assert back["model"]["_ema"]["w"][1].tolist() == [0, 0, 0, 0]
    assert back["odd"][0] == (1, None) and back["odd"][1]["b"] == b"\x01"
    assert list(back["odd"][1]) == [3, "b"] and np.isnan(back["odd"][1][3])
    assert back["odd"][2][1].dtype == np.complex64


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"notes":{},"tree":{"carried":["x","float32",[1]]}}',
        b'{"notes":{},"tree":{"spell":1}}',
        b'{"notes":{},"tree":{"dict":[[[],1]]}}',
        b'{"notes":{},"tree":{"bytes":3}}',
        b'{"notes":3,"tree":1}',
        b'{"notes":{},"tree":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_damaged_tree_is_refused(text):
    stored = {TREE_LEAF: np.frombuffer(text, np.uint8)}
    with pytest.raises(UserError, match="damaged copy"):
        read_tree(stored, lambda *_: None, lambda *_: None, "a model")
