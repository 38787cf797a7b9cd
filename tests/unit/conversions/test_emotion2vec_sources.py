"""What a checkpoint's configuration means: coerced, bounded, never evaluated; what shapes tell."""

import dataclasses

import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec_config import ConvLayer, Emotion2VecConfig
from conversions.conv_spec import parse_conv_spec, published_strides
from conversions.emotion2vec import AUDIO, TABLE, parts_of, target_shapes
from conversions.emotion2vec_config import encoder_config, read_yaml, source_config
from conversions.emotion2vec_fields import coerce
from conversions.emotion2vec_upstream import upstream_config
from conversions.tensors import Extent, LazyTensor, contiguous_strides

STEM = tuple(
    ConvLayer(6 + i, kernel, stride)
    for i, (kernel, stride) in enumerate(zip((10, 3, 3, 3, 3, 2, 2), (5, *[2] * 6), strict=True))
)
CFG = Emotion2VecConfig(
    width=24, depth=3, prenet_depth=2, heads=4, mlp_ratio=3.0, conv_layers=STEM, position_width=20,
    position_depth=4, position_groups=8, extra_tokens=7, norm_epsilon=1e-6,
)  # fmt: skip
PRETRAINING = Data2VecConfig(
    decoder_width=16, decoder_depth=2, decoder_kernel=5, decoder_groups=8, clone_batch=3
)


def test_the_published_spec_is_parsed():
    spec = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
    assert parse_conv_spec(spec, "a") == Emotion2VecConfig().conv_layers
    assert parse_conv_spec(f" 2 * {[(3, 2, 1)]} ", "a") == (ConvLayer(3, 2, 1),) * 2
    assert parse_conv_spec([[3, 2, 1]], "a") == (ConvLayer(3, 2, 1),)


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('echo executed > PWNED')",
        "[(512, 10, 5)] + [open('PWNED', 'w')]",
        "[(x, 10, 5) for x in [512]]",
        "(lambda: [(512, 10, 5)])()",
        "[(512, 10, 5)] * 10 ** 9",
        "[(512, 10, 5)] * 1000000000",
        "[(512, 10, 5)] * 60 * 60",
        "[(1 << 40, 10, 5)]",
        "[(512, 10)]",
        "[(512, 0, 5)]",
        "[(512, 10, -5)]",
        "[(512, 10.0, 5)]",
        "[(True, 10, 5)]",
        "[f'{1}']",
        "[(512, 10, 5)].__class__",
        "[(512, 10, 5)",
        "[" * 900 + "]" * 900,
        "(" * 1900,
        "-" * 1900 + "1",
        "1+" * 900 + "1",
        "x" * 3000,
        "",
        "\x00",
        5,
        None,
        {"a": 1},
        [None],
    ],
)
def test_any_other_expression_is_refused_and_not_evaluated(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="feature_encoder_spec") as refusal:
        parse_conv_spec(spec, "a")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_numbers_are_coerced_and_bounded():
    assert coerce("1e-05", float, "norm_eps", "a") == 1e-5
    assert coerce("8", int, "depth", "a") == 8 and coerce(8.0, int, "depth", "a") == 8
    assert coerce("True", bool, "normalize", "a") is True
    for value, kind in (
        ("many", int), (8.5, int), (-1, int), (10**9, int), (True, int), (None, int), ([], int),
        ("nan", float), ("inf", float), (True, float), ("9" * 50, float), (1, bool), ("no", bool),
    ):  # fmt: skip
        with pytest.raises(UserError, match="depth is"):
            coerce(value, kind, "depth", "a")


def lazy(shapes: dict[str, tuple[int, ...]], tmp_path) -> dict[str, LazyTensor]:
    dtype = np.dtype(np.float32)
    extent = Extent(tmp_path / "a", 0, 1 << 30)
    return {
        name: LazyTensor(shape, dtype, extent, contiguous_strides(shape))
        for name, shape in shapes.items()
    }


def source_shapes(cfg, classes=None, pretraining=None) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for path, leaf in target_shapes(cfg, classes, pretraining).items()
        for name, shape, _ in TABLE.sources(path, leaf)
    }


def sections(cfg=CFG, pretraining=None, **model):
    made = upstream_config(dataclasses.asdict(cfg), pretraining, False)
    made["model"] |= model
    return source_config({"cfg": made}, None, "a")


@pytest.mark.parametrize("classes", [None, 9])
def test_every_parameter_has_a_source_name_and_the_way_back(classes):
    pretraining = None if classes else PRETRAINING
    targets = target_shapes(CFG, classes, pretraining)
    found: dict[str, set] = {}
    for name in source_shapes(CFG, classes, pretraining):
        match = TABLE.match(name)
        assert match is not None
        found.setdefault(match.target, set()).add(match.layer)
    assert found.keys() == targets.keys()
    assert found["encoder/blocks/mlp/fc1/kernel"] == {0, 1, 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learned_alibi_scale_per_layer": True},
        {"alibi_scale": "learned"},
        {"prenet_depth": 0},
        {"extra_tokens": 0},
        {"conv_bias": True},
    ],
)
def test_our_config_survives_upstreams_words(changes, tmp_path):
    cfg = dataclasses.replace(CFG, **changes)
    parts = parts_of(lazy(source_shapes(cfg), tmp_path))
    got, notes = encoder_config(sections(cfg), parts.encoder, None)
    assert got == cfg
    assert notes["normalize_waveform"] == "task config"


def test_shapes_alone_tell_all_but_the_norms(tmp_path):
    parts = parts_of(lazy(source_shapes(CFG, None, PRETRAINING), tmp_path))
    empty = source_config({}, None, "a")
    got, notes = encoder_config(empty, parts.encoder, None)
    assert got == dataclasses.replace(CFG, norm_epsilon=1e-5)
    assert "norm_epsilon" in notes["assumed"] and "heads" in notes["from shapes"]
    assert parts.decoder == {
        "decoder_width": 16, "decoder_depth": 2, "decoder_kernel": 5, "decoder_groups": 8,
    }  # fmt: skip


def test_heads_and_strides_are_not_guessed(tmp_path):
    cfg = dataclasses.replace(CFG, alibi_scale="learned")
    facts = parts_of(lazy(source_shapes(cfg), tmp_path)).encoder
    with pytest.raises(UserError, match="attention heads"):
        encoder_config(source_config({}, None, "a"), facts, None)
    odd = (dataclasses.replace(STEM[0], kernel=9), *STEM[1:])
    facts = parts_of(
        lazy(source_shapes(dataclasses.replace(CFG, conv_layers=odd)), tmp_path)
    ).encoder
    with pytest.raises(UserError, match="strides"):
        encoder_config(source_config({}, None, "a"), facts, None)
    assert published_strides([(5, 9)]) is None


def test_old_files_with_four_axes_of_alibi_scales_fit(tmp_path):
    shapes = source_shapes(CFG)
    assert shapes[AUDIO + "alibi_scale"] == (1, 1, 4, 1, 1)
    facts = parts_of(lazy(shapes | {AUDIO + "alibi_scale": (1, 4, 1, 1)}, tmp_path)).encoder
    assert (facts["heads"], facts["learned_alibi_scale_per_layer"]) == (4, False)
    match = TABLE.match(AUDIO + "alibi_scale")
    leaf = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert match.within(leaf, (1, 4, 1, 1)).ravel().tolist() == [0, 1, 2, 3]
    assert match.within(np.zeros((5, 4), np.float32), (1, 4, 1, 1)) is None


def test_the_waveform_rule_follows_the_source():
    facts = {"heads": 4}
    emotion2vec_s = sections(semi_loss=1.0)
    assert encoder_config(emotion2vec_s, facts, None)[0].normalize_waveform is False
    assert encoder_config(emotion2vec_s, facts, True)[0].normalize_waveform is True
    raw = sections(dataclasses.replace(CFG, normalize_waveform=False))
    assert encoder_config(raw, facts, None)[0].normalize_waveform is False
    funasr = source_config({}, {"model_conf": {**sections().model, "normalize": True}}, "c.yaml")
    assert encoder_config(funasr, facts, None)[0].normalize_waveform is True


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("model", "norm_affine", False),
        ("model", "layer_norm_first", True),
        ("audio", "extractor_mode", "default"),
        ("audio", "conv_pos_pre_ln", True),
        ("audio", "learned_alibi", True),
        ("model", "depth", "many"),
        ("model", "num_heads", 7),
        ("model", "norm_eps", -1.0),
        ("model", "norm_eps", 0),
        ("model", "encoder_dropout", 1.5),
        ("audio", "conv_pos_depth", 10**12),
        ("audio", "feature_encoder_spec", "exit()"),
    ],
)
def test_options_without_a_counterpart_are_refused(place, key, value):
    made = upstream_config(dataclasses.asdict(CFG), None, False)
    section = made["model"] if place == "model" else made["model"]["modalities"]["audio"]
    section[key] = value
    with pytest.raises(UserError):
        encoder_config(source_config({"cfg": made}, None, "a"), {}, None)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['echo executed > PWNED']",
        "a: [",
        "a: " + "[" * 2000,
        "2001-99-99",
        "\x00",
        "a: " + "x" * 70_000,
        "a: &a {x: 1}\nb: {<<: *a}",
    ],
)
def test_unsound_yaml_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        source_config({}, read_yaml(path), str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
