"""Qwen2 against transformers: logits, hidden states, loss, cache and adapters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models import lora, qwen2
from c2ser_jax.models.qwen2 import Qwen2
from tests.golden_roots import golden_cases
from tests.parity.golden_qwen2 import (
    LORA,
    joined,
    load_adapter,
    load_c2ser,
    load_huggingface,
    read_npz,
    run,
)

LOGITS = 2e-3
CASES = [(case, kind) for case in golden_cases("c2ser_llm/qwen2") for kind in ("untied", "tied")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    folder, kind = request.param
    return *load_huggingface(folder / kind), read_npz(folder / f"io_{kind}.npz")


def deviation(found, wanted, mask=None):
    """Largest absolute difference, at positions where mask bool[B, S] is True."""
    difference = np.abs(np.asarray(found) - wanted)
    return difference.max() if mask is None else difference[np.asarray(mask, bool)].max()


def logits_deviation(found, io):
    """Largest absolute difference from upstream's logits, all of them or the answer's alone."""
    if "out/logits" in io:
        return deviation(found, io["out/logits"], io["out/attention_mask"])
    before = np.roll(io["out/target"] != -100, -1, axis=1)  # each token is predicted one earlier
    return deviation(np.asarray(found)[before], io["out/answer_logits"][0])


def cross_entropy(logits, labels):
    """Mean over labels that are not -100 of -log p, each label predicted one position before."""
    logits, labels = np.asarray(logits, np.float64)[:, :-1], labels[:, 1:]
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logp, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return -chosen[labels != -100].mean()


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_equal_the_source(case, side):
    cfg, params, io = case
    ids, mask = io[f"input_ids_{side}"], io[f"attention_mask_{side}"]
    output = run(cfg, params, ids, mask=mask, return_hidden=True)
    assert deviation(output.logits, io[f"logits_{side}"], mask) < LOGITS
    if side == "right":
        hidden, wanted = output.hidden_states, io["hidden_states_right"]
        assert hidden.shape == wanted.shape
        for i, layer in enumerate(wanted):
            assert deviation(hidden[i], layer, mask) < 2e-4 * max(1, np.abs(layer).max())
        loss = cross_entropy(output.logits, io["labels"])
        np.testing.assert_allclose(loss, io["loss"], rtol=1e-4)


def test_explicit_positions_equal_counted_ones(case):
    cfg, params, io = case
    mask = io["attention_mask_left"]
    output = run(cfg, params, io["input_ids_left"], mask=mask, positions=io["position_ids_left"])
    assert deviation(output.logits, io["logits_left"], mask) < LOGITS


def test_cached_steps_equal_the_source(case):
    cfg, params, io = case
    ids = io["decode_input_ids"]
    assert deviation(run(cfg, params, ids).logits, io["full_logits"]) < LOGITS
    whole = run(cfg, params, ids[:, :7], return_cache=True).cache
    keys, values = (np.asarray(x[0]).swapaxes(1, 2) for x in (whole.keys, whole.values))
    assert deviation(keys, io["prefill7_key_layer0"]) < 2e-4
    assert deviation(values, io["prefill7_value_layer0"]) < 2e-4
    assert io["cache_step_positions"].tolist() == list(range(6, 12))
    check_steps(cfg, params, ids, np.ones_like(ids), 6, io["cache_step_logits"])


def test_cached_steps_behind_left_padding_equal_the_source(case):
    cfg, params, io = case
    assert io["cache_left_step_positions"].tolist() == list(range(8, 12))
    ids, mask = io["input_ids_left"], io["attention_mask_left"]
    check_steps(cfg, params, ids, mask, 8, io["cache_left_step_logits"])


def check_steps(cfg, params, ids, mask, first, wanted):
    cache = run(cfg, params, ids[:, :first], mask=mask[:, :first], return_cache=True).cache
    cache = with_room(cache, ids.shape[1] - first)
    for i in range(first, ids.shape[1]):
        output = run(cfg, params, ids[:, i : i + 1], mask=mask[:, i : i + 1], cache=cache)
        cache = output.cache
        assert deviation(output.logits[:, 0], wanted[:, i - first]) < LOGITS


def with_room(cache, slots):
    pad = lambda x, axis: jnp.pad(x, [(0, slots if i == axis else 0) for i in range(x.ndim)])  # noqa: E731
    return cache.replace(
        keys=pad(cache.keys, 2), values=pad(cache.values, 2), mask=pad(cache.mask, 1)
    )


@pytest.mark.parametrize("folder", golden_cases("c2ser_llm/qwen2"), ids=str)
def test_adapter_equals_the_source_merged_or_not(folder):
    cfg, params = load_huggingface(folder / "untied")
    adapted, factors = load_adapter(folder / "lora_adapter", cfg)
    io = read_npz(folder / "io_lora.npz")
    ids, mask = io["input_ids"], io["attention_mask"]
    both = joined(params, factors)
    found = run(adapted, both, ids, mask=mask).logits
    assert deviation(found, io["logits_adapter"], mask) < LOGITS
    merged = lora.merge(both, LORA.scale)
    assert deviation(run(cfg, merged, ids, mask=mask).logits, io["logits_merged"], mask) < LOGITS
    if (folder / "lora_merged").exists():
        _, source = load_huggingface(folder / "lora_merged")
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), merged, source)
    plain = run(cfg, params, ids, mask=mask).logits
    assert deviation(plain, io["logits_adapter"], mask) > 10 * LOGITS


def forward_files():
    """The files of `c2ser_forward` that hold what the language model got and gave."""
    for case in golden_cases("c2ser_llm/c2ser_forward"):
        whole = [f"io_{b}_{m}.npz" for b in ("single", "batch3") for m in ("full", "ssl_only")]
        for name in ("language_model_single_full.npz", *whole):
            if (case / name).exists():
                with np.load(case / name) as file:
                    if "out/logits" in file.files:
                        yield case, name


FORWARD = list(forward_files())
HALF = golden_cases("c2ser_llm/c2ser_forward")


@pytest.mark.parametrize(("folder", "name"), FORWARD, ids=str)
def test_language_model_of_c2ser_equals_upstream(folder, name):
    cfg, params = load_c2ser(folder)
    io = read_npz(folder / name)
    mask = io["out/attention_mask"]
    output = run(cfg, params, embeddings=io["out/inputs_embeds"], mask=mask, return_hidden=True)
    assert deviation(output.logits, io["out/logits"], mask) < LOGITS
    for found, wanted in zip(output.hidden_states, io["out/llm_hidden_states"], strict=True):
        assert deviation(found, wanted, mask) < 2e-4 * max(1, np.abs(wanted).max())
    loss = cross_entropy(output.logits, io["out/target"])
    np.testing.assert_allclose(loss, io["out/loss"], rtol=1e-4)


@pytest.mark.parametrize("folder", HALF, ids=str)
def test_half_precision_checkpoint_equals_upstream(folder):
    cfg, params = load_c2ser(folder, "checkpoint_bf16.pt")
    io = read_npz(folder / "io_single_full_bf16ckpt.npz")
    mask = io["out/attention_mask"]
    embeddings = io["out/inputs_embeds"]
    found = run(cfg, params, embeddings=embeddings, mask=mask).logits
    assert logits_deviation(found, io) < LOGITS
    _, exact = load_c2ser(folder)
    found = run(cfg, exact, embeddings=embeddings, mask=mask).logits
    assert logits_deviation(found, io) > 10 * LOGITS
    stored = lora.split(params)[0]
    narrow = dataclasses.replace(cfg, param_dtype="bfloat16")
    stored = joined(jax.tree.map(lambda x: x.astype(jnp.bfloat16), stored), lora.split(params)[1])
    found = run(narrow, stored, embeddings=embeddings, mask=mask).logits
    assert logits_deviation(found, io) < LOGITS


@pytest.mark.parametrize(
    ("folder", "name", "remat"), [(*c, i == 0) for i, c in enumerate(FORWARD[:3])], ids=str
)
def test_adapter_gradients_equal_upstream(folder, name, remat):
    cfg, params = load_c2ser(folder)
    cfg = dataclasses.replace(cfg, remat=remat)
    io = read_npz(folder / name)
    found = gradients(cfg, params, io)
    compared = []
    for key, wanted in io.items():
        if not (key.startswith("grad/llama_model") and ".lora_" in key):
            continue
        parts = key.removesuffix(".default.weight").split(".")
        layer, (part, name, factor) = int(parts[5]), parts[6:9]
        got = found["layers"][part][name][factor.lower()][layer].T
        assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted), key
        compared.append((layer, part, name, factor.lower(), wanted.T))
    layer, part, name, factor, wanted = compared[-1]
    damaged = jax.tree.map(np.array, params)
    damaged["layers"]["mlp"]["up_proj"]["kernel"] *= 1.01
    wrong = gradients(cfg, damaged, io, check_loss=False)["layers"][part][name][factor]
    assert np.linalg.norm(wrong[layer] - wanted) > 1e-3 * np.linalg.norm(wanted)


def label_loss(logits, labels):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], -1)
    real = labels != -100
    return -jnp.where(real, chosen[..., 0], 0).sum() / real.sum()


@partial(jax.jit, static_argnums=0)
def loss_and_gradients(cfg, factors, base, embeddings, mask, at, labels):
    def loss(factors):
        params = joined(base, factors)
        output = Qwen2(cfg).apply({"params": params}, embeddings=embeddings, mask=mask, at=at)
        assert output.logits.shape == (*at.shape, cfg.vocabulary)
        return label_loss(output.logits, labels)

    return jax.value_and_grad(loss)(factors)


def gradients(cfg, params, io, check_loss=True):
    """Gradients of the factors; logits are computed where a label follows and nowhere else."""
    target = io["out/target"]
    base, factors = lora.split(params)
    width = int((target[:, 1:] != -100).sum(1).max())
    at = np.argsort(target[:, 1:] == -100, 1, kind="stable")[:, :width].astype(np.int32)
    labels = np.take_along_axis(target[:, 1:], at, 1)

    inputs = io["out/inputs_embeds"], io["out/attention_mask"]
    value, made = loss_and_gradients(cfg, factors, base, *inputs, at, labels)
    if check_loss:
        np.testing.assert_allclose(value, io["out/loss"], rtol=1e-4)
    return made


def interleaved_rotation(monkeypatch):
    def turned(x, cos, sin):
        first, second = x[..., ::2], x[..., 1::2]
        other = jnp.stack([-second, first], -1).reshape(x.shape)
        return x * cos + other * sin

    monkeypatch.setattr(qwen2, "rotate", turned)


def doubled_positions(monkeypatch):
    original = qwen2.rotary
    shifted = lambda positions, *sizes: original(positions * 2, *sizes)  # noqa: E731
    monkeypatch.setattr(qwen2, "rotary", shifted)


def scattered_groups(monkeypatch):
    """Heads share keys h % K, where the source has h // (H / K)."""
    original = qwen2.attend

    def attend(query, key, value, **options):
        groups = query.shape[2] // key.shape[2]
        tiled = [jnp.tile(x, (1, 1, groups, 1)) for x in (key, value)]
        return original(query, *tiled, **options)

    monkeypatch.setattr(qwen2, "attend", attend)


def seen_future(monkeypatch):
    monkeypatch.setattr(qwen2.jnp, "tril", lambda x: x)


@pytest.mark.parametrize(
    "fault", [interleaved_rotation, doubled_positions, scattered_groups, seen_future, None]
)
def test_planted_fault_in_the_code_shows(case, fault, monkeypatch):
    cfg, params, io = case
    if fault is not None:
        fault(monkeypatch)
    ids, mask = io["input_ids_right"], io["attention_mask_right"]
    found = jax.jit(Qwen2(cfg).apply)({"params": params}, ids, mask=mask).logits
    wrong = deviation(found, io["logits_right"], mask)
    assert wrong < LOGITS if fault is None else wrong > 5 * LOGITS


def exchange_gate_and_up(params):
    mlp = params["layers"]["mlp"]
    mlp["gate_proj"], mlp["up_proj"] = mlp["up_proj"], mlp["gate_proj"]


def reverse_layers(params):
    params["layers"] = jax.tree.map(lambda leaf: leaf[::-1], params["layers"])


def no_query_bias(params):
    params["layers"]["self_attn"]["q_proj"]["bias"] *= 0


def shift_tokens(params):
    params["embed_tokens"]["embedding"] = np.roll(params["embed_tokens"]["embedding"], 1, 0)


@pytest.mark.parametrize(
    "fault", [exchange_gate_and_up, reverse_layers, no_query_bias, shift_tokens]
)
def test_planted_fault_in_the_weights_shows(case, fault):
    cfg, params, io = case
    params = jax.tree.map(np.array, params)
    fault(params)
    found = run(cfg, params, io["input_ids_right"], mask=io["attention_mask_right"]).logits
    assert deviation(found, io["logits_right"], io["attention_mask_right"]) > 5 * LOGITS


@pytest.mark.parametrize(("folder", "name"), FORWARD[:1], ids=str)
def test_planted_fault_in_the_adapters_shows(folder, name):
    cfg, params = load_c2ser(folder)
    io = read_npz(folder / name)
    mask, embeddings = io["out/attention_mask"], io["out/inputs_embeds"]
    halved = dataclasses.replace(cfg, lora=dataclasses.replace(cfg.lora, alpha=cfg.lora.alpha / 2))
    found = run(halved, params, embeddings=embeddings, mask=mask).logits
    assert deviation(found, io["out/logits"], mask) > 5 * LOGITS
