"""Generated tokens and scores against transformers 4.44, in the four modes C2SER is asked in."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from c2ser_jax.decoding import beam, scores
from c2ser_jax.decoding.generate import DecodingConfig, generate
from c2ser_jax.models.qwen2 import Qwen2
from tests.golden_roots import golden_cases
from tests.parity.golden_qwen2 import load_c2ser, read_npz

BUCKET = 72
RULES = DecodingConfig(max_new_tokens=40, repetition_penalty=1.05, eos=(480,), pad=480)
MODES = {
    "greedy": dataclasses.replace(RULES, mode="greedy", repetition_penalty=1.0),
    "greedy_rp1.05": dataclasses.replace(RULES, mode="greedy"),
    "beam4_rp1.05": dataclasses.replace(RULES, mode="beam"),
    "upstream_effective": RULES,
}


@pytest.fixture(scope="module")
def case():
    cfg, params = load_c2ser(golden_cases("c2ser_llm/c2ser_forward")[0])
    folder = golden_cases("c2ser_llm/generate")[0]
    wanted = json.loads((folder / "outputs.json").read_text())
    return Qwen2(cfg), params, read_npz(folder / "io.npz"), wanted


def padded(embeddings):
    """(embeddings, mask) of one utterance, padded behind to the bucket."""
    size = embeddings.shape[1]
    mask = np.arange(BUCKET)[None] < size
    return np.pad(embeddings, ((0, 0), (0, BUCKET - size), (0, 0))), mask


def ids(generated, row=0):
    return np.asarray(generated.tokens[row, : generated.lengths[row]]).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_one_utterance_equals_the_source(case, mode):
    model, params, io, wanted = case
    assert wanted["modes"][mode]["repetition_penalty"] == MODES[mode].repetition_penalty
    for i, example in enumerate(wanted["examples"]):
        embeddings, mask = padded(io[f"ex{i}/inputs_embeds"])
        found = generate(model, params, embeddings, mask, MODES[mode])
        result = example["results"][mode]
        assert ids(found) == result["ids"], i
        assert (np.asarray(found.tokens[0, len(result["ids"]) :]) == 480).all()
        if result["score"] is not None:
            np.testing.assert_allclose(found.scores[0], result["score"], rtol=1e-5)
        if mode == "beam4_rp1.05" and "beam4_rp105_nbest" in example:
            for place, one in enumerate(example["beam4_rp105_nbest"]):
                length = found.best_lengths[0, place]
                assert np.asarray(found.best_tokens[0, place, :length]).tolist() == one["ids"]
                np.testing.assert_allclose(found.best_scores[0, place], one["score"], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_left_padded_batch_equals_the_source(case, mode):
    model, params, io, wanted = case
    embeddings, mask = io["batch_left/inputs_embeds"], io["batch_left/attention_mask"]
    found = generate(model, params, embeddings, mask, MODES[mode])
    result = wanted["batch_left_padded"][mode]
    for row, expected in enumerate(result["ids"]):
        end = expected.index(480) + 1 if 480 in expected else len(expected)
        assert ids(found, row) == expected[:end], row
    if result["scores"] is not None:
        np.testing.assert_allclose(found.scores, result["scores"], rtol=1e-5)


def test_batch_with_holes_equals_the_source(case):
    model, params, io, wanted = case
    embeddings, mask = io["batch_segment/inputs_embeds"], io["batch_segment/attention_mask"]
    found = generate(model, params, embeddings, mask, RULES)
    for row, expected in enumerate(wanted["batch_segment_padded"]["upstream_effective"]["ids"]):
        end = expected.index(480) + 1 if 480 in expected else len(expected)
        assert ids(found, row) == expected[:end], row


def penalty_forgets(monkeypatch):
    monkeypatch.setattr(beam, "mark", lambda seen, token: seen)


def penalty_divides(monkeypatch):
    monkeypatch.setattr(beam, "penalise", lambda s, seen, p: scores.penalise(s, seen, 1 / p))


def length_is_ignored(monkeypatch):
    monkeypatch.setattr(beam, "_score", lambda sums, length, cfg: sums)


@pytest.mark.parametrize("fault", [penalty_forgets, penalty_divides, length_is_ignored])
def test_planted_fault_in_the_search_shows(case, fault, monkeypatch):
    model, params, io, wanted = case
    fault(monkeypatch)
    rows = [padded(io[f"ex{i}/inputs_embeds"]) for i in range(len(wanted["examples"]))]
    embeddings, mask = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    search = jax.jit(lambda *inputs: beam.beam_search(model, *inputs, RULES))
    found = search(params, embeddings, mask)
    expected = [example["results"]["upstream_effective"]["ids"] for example in wanted["examples"]]
    assert [ids(found, row) for row in range(len(rows))] != expected


def test_plain_search_differs_from_the_published_one(case):
    results = case[3]["examples"][0]["results"]
    assert results["beam4_rp1.05"]["ids"] != results["upstream_effective"]["ids"]
