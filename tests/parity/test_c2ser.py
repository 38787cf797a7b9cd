"""The imported C2SER, whole, against upstream's: forward, loss, gradients in both input modes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from c2ser_jax.models import lora
from c2ser_jax.models.qwen2 import Qwen2
from conversions.connector_names import SPEECH_TOKENS
from tests.golden_conversion import convert, write_acoustic
from tests.golden_roots import golden_cases
from tests.parity.golden_c2ser import (
    answer_logits,
    batch_of,
    embedded,
    load,
    read,
    run,
    score,
    with_base,
)

FOLDERS = golden_cases("c2ser_llm/c2ser_forward")
NAMES = ["single_full", "batch3_full", "single_ssl_only", "batch3_ssl_only"]
CASES = [(folder, name) for folder in FOLDERS for name in NAMES]
EMBEDDED, LOGITS, LOSS, GRADIENT = 2e-4, 2e-3, 1e-4, 1e-3
PROMPT, ANSWER = 47, 42


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{name: (config, parameters)} of the directories that the conversions make."""
    folder = tmp_path_factory.mktemp("c2ser")
    acoustic, made = write_acoustic(folder / "e2vs.pt"), {}
    made["keep"] = load(convert(folder / "keep", acoustic))
    made["merge"] = load(convert(folder / "merge", acoustic, "--lora", "merge"))
    half = FOLDERS[0] / "checkpoint_bf16.pt"
    made["bf16"] = load(convert(folder / "bf16", acoustic, checkpoint=half))
    return made


@pytest.fixture(scope="module")
def cfg(models):
    """With the option that repeats what upstream's batches do to padded utterances."""
    return published(models["keep"][0])


def published(cfg):
    encoder = dataclasses.replace(cfg.encoder, published_padding=True)
    return dataclasses.replace(cfg, encoder=encoder)


def batch_for(io, name):
    """A case in the shape that all share; with nothing but silence where only tokens are heard."""
    batch = batch_of(io, mel=171, prompt=PROMPT, answer=ANSWER)
    if "ssl_only" in name:
        batch["mel"] = (batch["mel"][0], np.zeros_like(batch["mel"][1]))
    return batch


def own(io, found, is_sequence=True):
    """Our padded array [rows, ...] cut to a case's own rows, and its answer or whole sequence."""
    B, L = io["in/target_ids"].shape
    if not is_sequence:
        return found[:B, :L]
    P, S = io["in/prompt"].shape[1], io["out/speech_embeds"].shape[1]
    end = found.shape[1] - ANSWER
    parts = [(0, P), (PROMPT, 1), (PROMPT + 1, S), (end - 1, 1), (end, L)]
    return np.concatenate([found[:B, start : start + size] for start, size in parts], 1)


def assert_same_forward(io, params, batch, loss, output):
    found, mask = (own(io, array) for array in embedded(params, batch, output.heard))
    np.testing.assert_array_equal(mask, io["out/attention_mask"])
    np.testing.assert_allclose(found[mask], io["out/inputs_embeds"][mask], atol=EMBEDDED, rtol=0)
    positions = np.where(mask, mask.cumsum(1) - 1, 1)  # the language model's rule
    np.testing.assert_array_equal(positions, io["out/position_ids"])
    real, logits = own(io, batch["answer_mask"], False), own(io, output.logits, False)
    target = io["out/target"][:, -real.shape[1] :]
    np.testing.assert_array_equal(np.where(real, io["in/target_ids"], -100), target)
    np.testing.assert_allclose(logits[real], answer_logits(io)[real], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(loss, io["out/loss"], rtol=LOSS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_loss_and_gradients_equal_upstream(models, cfg, case):
    params, (folder, name) = models["keep"][1], case
    io = read(folder / f"io_{name}.npz")
    batch = batch_for(io, name)
    (loss, output), gradients = run(cfg, params, batch)
    assert_same_forward(io, params, batch, loss, output)
    norms = json.loads((folder / "grad_norms.json").read_text())[name]
    wrong = [key for key, norm in norms.items() if not has_norm(gradients.get(key), norm)]
    assert not wrong and norms.keys() > gradients.keys()
    for key in [key for key in io if key.startswith("grad/")]:
        assert deviation(gradients, key[5:], io[key]) < GRADIENT, key


def has_norm(gradient, norm):
    """Whether a gradient is upstream's; one that is zero but for rounding has no direction."""
    if norm is None:
        return gradient is None or not gradient.any()
    found = np.linalg.norm(gradient)
    return abs(found - norm) < GRADIENT * norm or max(found, norm) < 1e-7


def deviation(gradients, name, wanted):
    if name == SPEECH_TOKENS:  # only the last two rows are ever used
        assert not wanted[:-2].any()
        wanted = wanted[-2:]
    return np.linalg.norm(gradients[name] - wanted) / np.linalg.norm(wanted)


def test_hearing_tokens_alone_equals_upstream(models, cfg):
    """Without the encoder, as the config says: the program has none in it."""
    alone = dataclasses.replace(cfg, inputs="acoustic")
    forward = jax.jit(lambda params, batch: score(alone, params, batch))
    for folder in FOLDERS:
        for name in ("single_ssl_only", "batch3_ssl_only"):
            io = read(folder / f"io_{name}.npz")
            batch = batch_of(io, mel=171, prompt=PROMPT, answer=ANSWER)
            loss, output = forward(models["keep"][1], batch)
            output = jax.tree.map(np.asarray, output)
            assert_same_forward(io, models["keep"][1], batch, float(loss), output)


WHOLE = [
    folder / f"{name}.npz"
    for folder in FOLDERS
    for name in ("language_model_single_full", *(f"io_{name}" for name in NAMES))
    if (folder / f"{name}.npz").exists()
]


def test_every_position_of_the_language_model_equals_upstream(models):
    """Holes of padded segments included; the copies here hold all positions of one utterance."""
    cfg, params = models["keep"]
    forward = jax.jit(
        lambda params, embeddings, mask, positions: Qwen2(cfg.llm).apply(
            {"params": params}, embeddings=embeddings, mask=mask, positions=positions,
            return_hidden=True,
        )
    )  # fmt: skip
    cases = [io for io in map(read, WHOLE) if "out/logits" in io]
    assert cases
    for io in cases:
        B, S = io["out/attention_mask"].shape
        space = [(0, 3 - B), (0, 123 - S)]
        mask = np.pad(io["out/attention_mask"], space)
        positions = np.pad(io["out/position_ids"], space, constant_values=1)
        embeddings = np.pad(io["out/inputs_embeds"], [*space, (0, 0)])
        found = forward(params["llm"], embeddings, mask, positions)
        real = io["out/attention_mask"]
        logits, hidden = found.logits[:B, :S], found.hidden_states[:, :B, :S]
        np.testing.assert_allclose(logits[real], io["out/logits"][real], atol=LOGITS, rtol=0)
        wanted = io["out/llm_hidden_states"]
        np.testing.assert_allclose(hidden[:, real], wanted[:, real], atol=LOGITS, rtol=0)
        wrong = forward(params["llm"], embeddings, mask, positions + positions % 2)
        assert np.abs(wrong.logits[:B, :S][real] - io["out/logits"][real]).max() > 2 * LOGITS


def test_bfloat16_checkpoint_equals_upstream(models, cfg):
    half, params = models["bf16"]
    frozen = jax.tree.leaves(lora.split(params["llm"])[0])
    assert half.llm.param_dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in frozen} == {"bfloat16"}
    params = jax.tree.map(np.float32, params)
    for folder in FOLDERS:
        single = read(folder / "io_single_full.npz")
        io = single | read(folder / "io_single_full_bf16ckpt.npz")
        batch = batch_for(io, "full")
        (loss, output), _ = run(cfg, params, batch)
        assert_same_forward(io, params, batch, loss, output)
        assert abs(loss - single["out/loss"]) > 5 * LOSS * loss  # float32 weights give another


def test_merged_adapters_equal_upstream(models, cfg):
    merged, params = models["merge"]
    assert merged.llm.lora is None and "lora_a" not in params["llm"]["layers"]["mlp"]["gate_proj"]
    kept = models["keep"][1]["llm"]
    silent = {**models["keep"][1], "llm": with_base(kept, params["llm"])}
    io = read(FOLDERS[0] / "io_batch3_full.npz")
    batch = batch_for(io, "full")
    (loss, output), _ = run(cfg, silent, batch)
    assert_same_forward(io, silent, batch, loss, output)


def worst(cfg, params, io, batch):
    """(largest deviation of a logit, relative one of the loss) from upstream's."""
    (loss, output), _ = run(cfg, params, batch)
    real, logits = own(io, batch["answer_mask"], False), own(io, output.logits, False)
    deviations = np.abs(logits - answer_logits(io))[real]
    return deviations.max(), abs(loss / io["out/loss"] - 1)


def exchange_marks(params):
    params["connector"]["speech_marks"] = params["connector"]["speech_marks"][::-1]


def forget_adapter(params):
    gate = params["llm"]["layers"]["mlp"]["gate_proj"]
    gate["lora_b"] = np.zeros_like(gate["lora_b"])


def double_adapter(params):
    gate = params["llm"]["layers"]["mlp"]["down_proj"]
    gate["lora_b"] = gate["lora_b"] * 2


def reverse_layers(params):
    blocks = params["encoder"]["layers"]
    params["encoder"]["layers"] = jax.tree.map(lambda leaf: leaf[::-1], blocks)


def shift_positions(params):
    params["encoder"]["positions"] = np.roll(params["encoder"]["positions"], 1, 0)


def transpose_query(params):
    query = params["llm"]["layers"]["self_attn"]["q_proj"]
    query["kernel"] = query["kernel"].swapaxes(1, 2)


def tie_head(params):
    params["llm"]["lm_head"] = params["llm"]["embed_tokens"]


WEIGHT_FAULTS = [
    exchange_marks, forget_adapter, double_adapter, reverse_layers, shift_positions,
    transpose_query, tie_head,
]  # fmt: skip


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_planted_fault_in_the_weights_shows(models, cfg, fault):
    io = read(FOLDERS[0] / "io_batch3_full.npz")
    wrong = copied(models["keep"][1])
    fault(wrong)
    logit, loss = worst(cfg, wrong, io, batch_for(io, "full"))
    assert logit > 2 * LOGITS and loss > LOSS


def copied(tree):
    return {k: copied(v) if isinstance(v, dict) else v for k, v in tree.items()}


def padded_prompts_are_seen(batch):
    batch["prompt_mask"] = np.ones_like(batch["prompt_mask"])


def tokens_are_reversed(batch):
    batch["tokens"] = batch["tokens"][:, ::-1]


def lengths_are_forgotten(batch):
    batch["mel"] = (batch["mel"][0], np.full_like(batch["mel"][1], 171))


def answers_begin_later(batch):
    batch["answer"] = np.roll(batch["answer"], 1, 1)


@pytest.mark.parametrize(
    "fault",
    [padded_prompts_are_seen, tokens_are_reversed, lengths_are_forgotten, answers_begin_later],
)
def test_planted_fault_in_the_batch_shows(models, cfg, fault):
    io = read(FOLDERS[0] / "io_batch3_full.npz")
    batch = batch_for(io, "full")
    fault(batch)
    logit, loss = worst(cfg, models["keep"][1], io, batch)
    assert logit > 2 * LOGITS and loss > LOSS


def test_planted_fault_in_the_gradients_shows(models, cfg):
    """A loss that counts padded answer tokens has other gradients."""
    folder = FOLDERS[0]
    io = read(folder / "io_batch3_full.npz")
    batch = batch_for(io, "full")
    batch["answer_mask"] = np.ones_like(batch["answer_mask"])
    _, gradients = run(cfg, models["keep"][1], batch)
    norms = json.loads((folder / "grad_norms.json").read_text())["batch3_full"]
    wrong = [key for key, norm in norms.items() if not has_norm(gradients.get(key), norm)]
    assert len(wrong) > 100
    keys = [key[5:] for key in io if key.startswith("grad/")]
    assert all(deviation(gradients, key, io[f"grad/{key}"]) > GRADIENT for key in keys)
