"""From a wav file and its acoustic tokens to generated ids, against upstream's, in four modes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from c2ser_jax.decoding.generate import DecodingConfig, generate
from c2ser_jax.models.c2ser import C2ser, language_model
from c2ser_jax.models.log_mel import log_mel
from tests.golden_conversion import convert, write_acoustic
from tests.golden_roots import golden_cases
from tests.parity.golden_c2ser import load, read, with_base

FOLDERS = golden_cases("c2ser_llm/generate")
RULES = DecodingConfig(max_new_tokens=40, repetition_penalty=1.05, eos=(480,), pad=480)
MODES = {
    "greedy": dataclasses.replace(RULES, mode="greedy", repetition_penalty=1.0),
    "greedy_rp1.05": dataclasses.replace(RULES, mode="greedy"),
    "beam4_rp1.05": dataclasses.replace(RULES, mode="beam"),
    "upstream_effective": RULES,
}
SAMPLES, PROMPT = 26_880, 40  # buckets longer than every example


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{adapters kept or merged: (config, parameters)}."""
    folder = tmp_path_factory.mktemp("c2ser")
    acoustic, made = write_acoustic(folder / "e2vs.pt"), {}
    for name in ("keep", "merge"):
        made[name] = load(convert(folder / name, acoustic, "--lora", name))
    return made


@pytest.fixture(scope="module", params=FOLDERS, ids=str)
def case(request):
    """(arrays, outputs, the examples as one batch) of one folder."""
    folder = request.param
    io = read(folder / "io.npz")
    io |= read(folder / "speech.npz") if (folder / "speech.npz").exists() else {}
    wanted = json.loads((folder / "outputs.json").read_text())
    waves = [soundfile.read(folder / f"ex{i}.wav", dtype="float32") for i in range(4)]
    assert all(rate == 16_000 for _, rate in waves)
    prompts = [example["prompt_ids"] for example in wanted["examples"]]
    rows = {
        "audio": np.stack([np.pad(wave, (0, SAMPLES - len(wave))) for wave, _ in waves]),
        "audio_samples": np.array([len(wave) for wave, _ in waves], np.int32),
        "tokens": np.stack([io[f"ex{i}/ssl_raw"] for i in range(4)]),
        "prompt": np.array([ids + [7] * (PROMPT - len(ids)) for ids in prompts], np.int32),
        "prompt_mask": np.array([[k < len(ids) for k in range(PROMPT)] for ids in prompts]),
    }
    return io, wanted, rows


@functools.cache
def listener(cfg):
    """(parameters, rows, features or None) -> (embeddings, mask) of a batch."""

    def forward(params, rows, mel):
        inputs = (rows["audio"], rows["audio_samples"], rows["prompt"], rows["prompt_mask"])
        heard = {"tokens": rows["tokens"], "mel": mel}
        return C2ser(cfg).apply({"params": params}, *inputs, **heard, method="listen")[:2]

    return jax.jit(forward)


def listen(cfg, params, rows, mel=None):
    return listener(cfg)(params, rows, mel)


@pytest.fixture(scope="module")
def heard(models, case):
    """What stands before the answers, of all examples in one batch."""
    return listen(*models["keep"], case[2])


def ids(generated, row):
    return np.asarray(generated.tokens[row, : generated.lengths[row]]).tolist()


def expected(result, end=480):
    return result[: result.index(end) + 1] if end in result else result


@pytest.fixture(scope="module")
def features(case):
    """Log-mel features [4, M, 80] of all examples."""
    return jax.jit(log_mel)(case[2]["audio"], case[2]["audio_samples"])[0]


def test_what_stands_before_the_answer_equals_upstream(case, heard, features):
    """All in one batch, odd lengths included, as each alone."""
    io, wanted, _ = case
    embeddings, mask = (np.asarray(array) for array in heard)
    for i, example in enumerate(wanted["examples"]):
        real = embeddings[i][mask[i]]
        assert len(real) == example["inputs_embeds_len"]
        np.testing.assert_allclose(real, io[f"ex{i}/inputs_embeds"][0], atol=2e-4, rtol=0)
        if f"ex{i}/feats" in io:  # upstream's are up to 2.9e-5 from float64's, ours 1.6e-5
            theirs = io[f"ex{i}/feats"][0]
            np.testing.assert_allclose(features[i, : len(theirs)], theirs, atol=4e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_answers_equal_upstream_token_for_token(models, case, heard, mode):
    (cfg, params), (_, wanted, _) = models["keep"], case
    found = generate(language_model(cfg), params["llm"], *heard, MODES[mode])
    for i, example in enumerate(wanted["examples"]):
        result = example["results"][mode]
        assert ids(found, i) == result["ids"], i
        if result["score"] is not None:
            np.testing.assert_allclose(found.scores[i], result["score"], rtol=1e-5)


def test_one_utterance_without_any_padding_is_heard_as_in_the_batch(models, case):
    (cfg, params), (io, _, rows) = models["keep"], case
    size, count = rows["audio_samples"][2], rows["prompt_mask"][2].sum()
    one = {name: array[2:3] for name, array in rows.items()}
    one |= {name: one[name][:, :count] for name in ("prompt", "prompt_mask")}
    one["audio"] = one["audio"][:, :size]
    embeddings, mask = listen(cfg, params, one)
    assert mask.all()
    np.testing.assert_allclose(embeddings, io["ex2/inputs_embeds"], atol=2e-4, rtol=0)


def test_merged_adapters_answer_the_same(models, case, heard):
    (cfg, params), (_, wanted, _) = models["keep"], case
    silent = with_base(params["llm"], models["merge"][1]["llm"])
    found = generate(language_model(cfg), silent, *heard, MODES["greedy"])
    for i, example in enumerate(wanted["examples"]):
        assert ids(found, i) == example["results"]["greedy"]["ids"], i


def test_upstreams_padded_batch_needs_the_named_option(models, case, features):
    """Upstream's batch pads an odd length (137 of 167 frames), which changes that row."""
    (cfg, params), (io, wanted, rows) = models["keep"], case
    lengths = rows["audio_samples"] // 160
    encoder = dataclasses.replace(cfg.encoder, published_padding=True)
    option = dataclasses.replace(cfg, encoder=encoder)
    embeddings, mask = listen(option, params, rows, (features[:, : lengths.max()], lengths))
    results = wanted["batch_segment_padded"]["upstream_effective"]["ids"]
    found = generate(language_model(cfg), params["llm"], embeddings, mask, RULES)
    assert [ids(found, i) for i in range(3)] == [expected(result) for result in results]
    embeddings, mask = np.asarray(embeddings), np.asarray(mask)
    for i in range(3):
        real = io["batch_segment/attention_mask"][i].astype(bool)
        theirs = io["batch_segment/inputs_embeds"][i][real]
        np.testing.assert_allclose(embeddings[i][mask[i]], theirs, atol=2e-4, rtol=0)
    assert np.abs(embeddings[2][mask[2]] - io["ex2/inputs_embeds"][0]).max() > 2e-3


@pytest.mark.parametrize("fault", ["tokens", "wave", "prompt"])
def test_planted_fault_in_what_is_heard_shows(models, case, fault):
    (cfg, params), (io, _, rows) = models["keep"], case
    wrong = dict(rows)
    if fault == "tokens":
        wrong["tokens"] = rows["tokens"][:, ::-1]
    elif fault == "wave":
        wrong["audio"] = np.roll(rows["audio"], 80, 1)
    else:
        wrong["prompt_mask"] = np.ones_like(rows["prompt_mask"])
    embeddings, mask = (np.asarray(array) for array in listen(cfg, params, wrong))
    for i in range(4):
        found, wanted = embeddings[i][mask[i]], io[f"ex{i}/inputs_embeds"][0]
        assert found.shape != wanted.shape or np.abs(found - wanted).max() > 2e-3


def test_planted_fault_in_the_embeddings_shows(models, case, heard):
    (cfg, params), (_, wanted, _) = models["keep"], case
    wrong = (jnp.roll(heard[0], 1, 1), heard[1])
    found = generate(language_model(cfg), params["llm"], *wrong, MODES["greedy"])
    results = [example["results"]["greedy"]["ids"] for example in wanted["examples"]]
    assert all(ids(found, i) != result for i, result in enumerate(results))
