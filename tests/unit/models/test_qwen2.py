"""The language model's own promises: caches, masks, layouts, precision, sizes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.decoding import cache as caches
from c2ser_jax.errors import UserError
from c2ser_jax.models import lora
from c2ser_jax.models.qwen2 import Mlp, Qwen2, Qwen2Config, stack_layers, unstack_layers
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.parallel.rules import RULES, logical_sharding
from tests.tiny_qwen2 import LORA, TINY, prompts, tiny_params, without_scan

MODEL = Qwen2(TINY)


def apply(*args, model=MODEL, params=None, **options):
    """The model's outputs, compiled whole: op by op it takes three times as long."""
    fixed = {name: value for name, value in options.items() if isinstance(value, str | bool)}
    arrays = {name: value for name, value in options.items() if name not in fixed}
    run = compiled(model, **fixed)
    return run({"params": params or tiny_params(model.cfg)}, *args, **arrays)


@functools.cache
def compiled(model, **fixed):
    return jax.jit(functools.partial(model.apply, **fixed))


start = jax.jit(caches.start, static_argnums=(0, 4))
advance = jax.jit(caches.advance, static_argnums=0)


@pytest.mark.parametrize("side", ["left", "holes"])
def test_padding_anywhere_changes_no_real_position(side):
    embeddings, mask = prompts([5, 9, 7], 9)
    moved, moved_mask = prompts([5, 9, 7], 13, side)
    wanted = np.asarray(apply(embeddings=embeddings, mask=mask).logits)
    found = np.asarray(apply(embeddings=moved, mask=moved_mask).logits)
    np.testing.assert_allclose(found[moved_mask], wanted[mask], atol=2e-5)
    shifted = np.asarray(apply(embeddings=moved, mask=np.roll(moved_mask, 1, 1)).logits)
    assert np.abs(shifted[moved_mask] - wanted[mask]).max() > 1e-2


def test_last_and_chosen_logits_are_those_of_all():
    embeddings, mask = prompts([5, 8, 9], 13, "holes")
    every = np.asarray(apply(embeddings=embeddings, mask=mask, logits="all").logits)
    np.testing.assert_array_equal(apply(embeddings=embeddings, mask=mask).logits, every)
    last = [np.flatnonzero(row)[-1] for row in mask]
    found = apply(embeddings=embeddings, mask=mask, logits="last").logits
    np.testing.assert_allclose(found, every[np.arange(3), last], atol=1e-5)
    at = np.array([[2, 0, 7], [1, 1, 4], [12, 5, 3]])
    found = apply(embeddings=embeddings, mask=mask, at=at).logits
    np.testing.assert_allclose(found, np.take_along_axis(every, at[..., None], 1), atol=1e-5)
    assert apply(embeddings=embeddings, mask=mask, logits="none").logits is None


@pytest.mark.parametrize("is_scanned", [True, False])
def test_cached_steps_equal_the_whole_run(is_scanned):
    model, params = MODEL, tiny_params()
    if not is_scanned:
        model, params = Qwen2(without_scan(TINY)), unstack_layers(params, TINY.depth)
        jax.tree.map(np.testing.assert_array_equal, stack_layers(params, TINY.depth), tiny_params())
    embeddings, mask = prompts([4, 7], 8, "holes")
    tokens = np.array([[3, 30, 5], [9, 1, 1]])
    after = apply(tokens, model=model, params=params, method="embed")
    whole = np.concatenate([embeddings, after], 1)
    seen = np.concatenate([mask, np.ones((2, 3), bool)], 1)
    wanted = apply(embeddings=whole, mask=seen, model=model, params=params).logits
    wanted = np.asarray(wanted)[:, -4:]
    logits, cache = start(model, params, embeddings, mask, 3)
    assert cache.mask.shape[1] % 8 == 0
    turned = jax.jit(caches.take)(cache, np.array([1, 0]))
    for i in range(3):
        logits, cache = advance(model, params, tokens[:, i], cache)
        np.testing.assert_allclose(logits, wanted[:, i + 1], atol=2e-5)
    logits, _ = advance(model, params, tokens[::-1, 0], turned)
    np.testing.assert_allclose(logits, wanted[::-1, 1], atol=2e-5)


def test_a_merged_adapter_gives_the_same_and_comes_out_again():
    params = tiny_params()
    tokens = np.array([[3, 30, 5, 7]])
    merged = jax.jit(lora.merge)(params, LORA.scale)
    assert not any("lora" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(merged))
    plain = Qwen2(dataclasses.replace(TINY, lora=None))
    wanted = apply(tokens).logits
    np.testing.assert_allclose(apply(tokens, model=plain, params=merged).logits, wanted, atol=2e-5)
    base, factors = lora.split(params)
    assert np.abs(apply(tokens, model=plain, params=base).logits - wanted).max() > 1e-2
    again = jax.jit(lora.unmerge)(merged, factors, LORA.scale)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, params)
    with pytest.raises(UserError, match="no layers/x for the adapter"):
        lora.unmerge(merged, {"layers": {"x": {"lora_a": np.zeros((2, 3))}}}, 1.0)


def test_adapter_dropout_acts_in_training_alone():
    tokens = np.array([[3, 30, 5, 7]])
    rngs = {"dropout": jax.random.key(0)}
    assert np.abs(apply(tokens, train=True, rngs=rngs).logits - apply(tokens).logits).max() > 1e-3


def test_the_backward_pass_keeps_two_wide_arrays_of_gate_and_up():
    mlp, x = Mlp(dataclasses.replace(TINY, lora=None)), jnp.ones((1, 5, TINY.width))
    params = mlp.init(jax.random.key(0), x)
    _, backward = jax.vjp(lambda x: mlp.apply(params, x), x)
    shapes = [leaf.shape for leaf in jax.tree.leaves(backward)]
    assert sum(shape[-1:] == (TINY.mlp_width,) and 5 in shape for shape in shapes) == 2


def test_weights_in_half_precision_equal_their_rounded_values():
    half = dataclasses.replace(TINY, param_dtype="bfloat16")
    shapes = jax.eval_shape(Qwen2(half).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    dtypes = {str(p[-2:]): x.dtype for p, x in jax.tree_util.tree_leaves_with_path(shapes)}
    for path, dtype in dtypes.items():
        assert dtype == (jnp.float32 if "lora" in path else jnp.bfloat16), path
    params = tiny_params(half)
    wide = jax.tree.map(lambda x: x.astype(np.float32), params)
    tokens = np.array([[3, 30, 5, 7]])
    wanted = apply(tokens, params=wide).logits
    np.testing.assert_allclose(
        apply(tokens, model=Qwen2(half), params=params).logits, wanted, atol=1e-5
    )


def test_the_real_model_has_its_published_size():
    real = Qwen2Config(lora=lora.LoraConfig(), param_dtype="bfloat16")
    shapes = jax.eval_shape(Qwen2(real).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    base, factors = lora.split(nn.meta.unbox(shapes["params"]))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(base) == 7_615_616_512 and count(factors) == 15_138_816
    assert count(base["embed_tokens"]) == count(base["lm_head"]) == 544_997_376
    assert count(base["layers"]) == 6_525_618_176


def test_every_axis_name_has_a_rule(monkeypatch):
    names: set[str] = set()
    original = nn.spmd._logical_to_mesh_axes

    def record(axes, rules=None):
        names.update(name for name in axes or () if isinstance(name, str))
        return original(axes, rules)

    monkeypatch.setattr("flax.linen.spmd._logical_to_mesh_axes", record)
    embeddings, mask = prompts([5, 9], 9)
    with jax.set_mesh(make_local_mesh()), nn.logical_axis_rules(RULES):
        boxed = jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 2), np.int32))
        logical_sharding(boxed, make_local_mesh())
        jax.eval_shape(lambda: caches.advance(
            MODEL, tiny_params(), np.array([1, 2]),
            caches.start(MODEL, tiny_params(), embeddings, mask, 1)[1],
        )[0])  # fmt: skip
    assert {"batch", "kv_heads", "vocabulary"} <= names <= {name for name, _ in RULES}
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    assert all(is_box(leaf) for leaf in jax.tree.leaves(boxed, is_leaf=is_box))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 5}, "not a multiple of key_value_heads 5"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_attention_heads": 0}, "heads is 0"),
    ],
)
def test_an_unsupported_config_gets_a_sentence(change, sentence):
    config = Qwen2Config().to_huggingface()
    assert Qwen2Config.from_huggingface(config) == Qwen2Config()
    with pytest.raises(UserError, match=sentence):
        Qwen2Config.from_huggingface({**config, **change})


def test_both_spellings_of_the_rotary_base_are_read():
    config = Qwen2Config().to_huggingface()
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert Qwen2Config.from_huggingface(config).rope_theta == 5e5
    with pytest.raises(UserError, match="lacks hidden_size"):
        Qwen2Config.from_huggingface({k: v for k, v in config.items() if k != "hidden_size"})


def test_a_config_survives_json():
    assert Qwen2Config.from_dict(dataclasses.asdict(TINY)) == TINY
    with pytest.raises(UserError, match="did you mean 'width'"):
        Qwen2Config.from_dict({"widht": 3})
    with pytest.raises(UserError, match="lora targets names 'qproj'"):
        Qwen2Config(lora=lora.LoraConfig(targets=("qproj",)))
    with pytest.raises(UserError, match="either tokens or embeddings"):
        apply(np.zeros((1, 2), int), embeddings=np.zeros((1, 2, TINY.width)))
