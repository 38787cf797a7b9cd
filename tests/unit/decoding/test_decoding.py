"""Generation, label scoring and constraints on a tiny model."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from c2ser_jax.decoding.generate import DecodingConfig, generate
from c2ser_jax.decoding.labels import pack_labels, pack_rivals, score_labels
from c2ser_jax.decoding.trie import build_trie
from c2ser_jax.errors import UserError
from c2ser_jax.models.qwen2 import Qwen2, unstack_layers
from tests.tiny_qwen2 import TINY, prompts, tiny_params, without_scan

CFG = dataclasses.replace(TINY, lora=None)
MODEL = Qwen2(CFG)
RULE = DecodingConfig(mode="greedy", max_new_tokens=7, eos=(4,), pad=4)
SIZES = [5, 9, 7]
LENGTH = 12  # of all prompts, so that tests share their programs


def rule_of(mode):
    """One rule per mode; "greedy" alone, which draws as "sample" does, has no penalty."""
    options = dict(temperature=1.5, top_k=9, top_p=0.9)
    if mode == "greedy":
        options["repetition_penalty"] = 1.0
    return dataclasses.replace(RULE, mode=mode, **options)


def params():
    return tiny_params(CFG)


@functools.partial(jax.jit, static_argnames="method")
def apply(*args, method=None, **inputs):
    return MODEL.apply({"params": params()}, *args, method=method, **inputs)


def answers(rule, embeddings, mask, **options):
    found = generate(MODEL, params(), embeddings, mask, rule, **options)
    return [np.asarray(row)[:n].tolist() for row, n in zip(*found_rows(found), strict=True)]


def found_rows(found):
    return np.asarray(found.tokens), np.asarray(found.lengths)


@pytest.mark.parametrize("mode", ["greedy", "published", "sample"])
def test_a_batch_gives_what_its_rows_give_alone(mode):
    rule = rule_of(mode)
    keys = jax.random.split(jax.random.key(5), len(SIZES))
    options = {"key": keys} if mode == "sample" else {}
    together = answers(rule, *prompts(SIZES, LENGTH, "holes"), **options)
    for row in range(len(SIZES)):
        one = {name: value[row : row + 1] for name, value in options.items()}
        assert answers(rule, *prompts(SIZES[row : row + 1], LENGTH, "left"), **one) == [
            together[row]
        ]
    assert len({tuple(answer) for answer in together}) > 1


def test_greedy_takes_the_best_token_of_the_whole_run():
    embeddings, mask = prompts([6], LENGTH)
    (answer,) = answers(rule_of("greedy"), embeddings, mask)
    whole = np.zeros((1, 20, CFG.width), np.float32)  # nothing sees what follows
    whole[:, :6] = embeddings[:, :6]
    whole[:, 6 : 6 + len(answer)] = apply(np.array([answer]), method="embed")
    logits = np.asarray(apply(embeddings=whole).logits)
    assert np.argmax(logits[0, 5 : 5 + len(answer)], -1).tolist() == answer


def test_layers_of_their_own_generate_the_same():
    embeddings, mask = prompts(SIZES, LENGTH)
    rule = rule_of("beam")
    wanted = generate(MODEL, params(), embeddings, mask, rule)
    model = Qwen2(without_scan(CFG))
    found = generate(model, unstack_layers(params(), CFG.depth), embeddings, mask, rule)
    np.testing.assert_array_equal(found.best_tokens, wanted.best_tokens)
    assert (np.diff(np.asarray(wanted.best_scores)) <= 0).all()


def test_no_answer_ends_too_early_and_the_end_is_padded():
    embeddings, mask = prompts(SIZES, LENGTH)
    everything = tuple(range(TINY.vocabulary))
    short = dataclasses.replace(RULE, eos=everything, pad=2)
    found = generate(MODEL, params(), embeddings, mask, short)
    assert found.lengths.tolist() == [1, 1, 1] and (np.asarray(found.tokens)[:, 1:] == 2).all()
    long = dataclasses.replace(RULE, min_new_tokens=6, eos=(4, 5, 6, 7, 8))
    found = generate(MODEL, params(), embeddings, mask, long)
    assert (np.asarray(found.lengths) >= 7).all()


ALLOWED = [[3, 7], [3, 8, 9], [11], [12, 3, 7, 7]]


@pytest.mark.parametrize("mode", ["greedy", "beam", "published", "sample"])
def test_constrained_answers_are_always_allowed(mode):
    trie = build_trie(ALLOWED, 4, TINY.vocabulary)
    options = {"key": jax.random.split(jax.random.key(0), 3)} if mode == "sample" else {}
    embeddings, mask = prompts(SIZES, LENGTH)
    for answer in answers(rule_of(mode), embeddings, mask, trie=trie, **options):
        assert answer[-1] == 4 and answer[:-1] in ALLOWED
    free = answers(rule_of(mode), embeddings, mask, **options)
    assert any(answer[:-1] not in ALLOWED for answer in free)


def test_label_probabilities_equal_a_forward_pass_per_label():
    labels = [[3, 7, 4], [9, 4], [11], [12, 3, 7, 7]]
    embeddings, mask = prompts(SIZES, LENGTH, "holes")
    packed, label_mask = pack_labels(labels)
    score = functools.partial(score_labels, MODEL, params(), embeddings, mask, packed, label_mask)
    found = score(prior=np.zeros(4, np.float32))
    wanted = np.zeros((len(SIZES), len(labels)))
    for row in range(len(SIZES)):
        real = embeddings[row][mask[row]]
        for column, label in enumerate(labels):
            whole = np.zeros((1, 20, embeddings.shape[2]), np.float32)  # nothing sees what follows
            whole[0, : len(real)] = real
            after = apply(np.array([label + [0] * (7 - len(label))]), method="embed")
            whole[0, len(real) : len(real) + len(label)] = after[0, : len(label)]
            logits = np.asarray(apply(embeddings=whole).logits[0], np.float64)[len(real) - 1 :]
            logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            wanted[row, column] = np.mean([logp[i, token] for i, token in enumerate(label)])
    np.testing.assert_allclose(found.scores, wanted, atol=2e-5)
    np.testing.assert_allclose(np.asarray(found.probabilities).sum(1), 1.0, atol=1e-6)
    softmax = np.exp(wanted) / np.exp(wanted).sum(1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, softmax, atol=2e-5)
    prior = np.array([0.5, -0.5, 2.0, 0.0], np.float32)
    corrected = score(prior=prior, temperature=2.0)
    wanted = np.exp((wanted - prior) / 2)
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(corrected.probabilities, wanted, atol=2e-5)


def test_only_tokens_that_decide_between_labels_count():
    """5 begins all; 7 or 9 decides, and behind 7 the 4 or the 3; what follows 9 is certain."""
    labels = [[5, 7, 4, 0], [5, 9, 4, 3, 11, 0], [5, 7, 3, 0]]
    embeddings, mask = prompts(SIZES, LENGTH, "holes")
    score = functools.partial(score_labels, MODEL, params(), embeddings, mask)
    packed, label_mask = pack_labels(labels)
    found = score(packed, label_mask, rivals=pack_rivals(packed, label_mask))
    scores = np.asarray(found.scores)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, np.exp(scores), atol=1e-5)
    each = {}  # log-probabilities of single tokens, from labels scored as they begin
    for start in ([5, 7], [5, 9], [5, 7, 4], [5, 7, 3]):
        counted = np.arange(6)[None] == len(start) - 1
        only, real = pack_labels([[*start, *[0] * (6 - len(start))], [1] * 6])
        scored = score(only, real, counted=counted & real)
        each[tuple(start)] = np.asarray(scored.scores[:, 0])
    first = each[5, 7] - np.logaddexp(each[5, 7], each[5, 9])
    second = each[5, 7, 4] - np.logaddexp(each[5, 7, 4], each[5, 7, 3])
    np.testing.assert_allclose(scores[:, 0], first + second, atol=1e-4)
    np.testing.assert_allclose(
        scores[:, 1], each[5, 9] - np.logaddexp(each[5, 7], each[5, 9]), atol=1e-4
    )
    with pytest.raises(UserError, match="same tokens"):
        pack_rivals(*pack_labels([[5, 7], [5, 7]]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "beams"}, "decoding mode is 'beams'"),
        ({"beams": 0}, "beams is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"min_new_tokens": 9}, "min_new_tokens is 9"),
        ({"eos": ()}, "eos is empty"),
    ],
)
def test_a_rule_that_means_nothing_gets_a_sentence(change, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(RULE, **change)


def test_a_request_that_can_not_be_met_gets_a_sentence():
    embeddings, mask = prompts([5], 9)
    with pytest.raises(UserError, match="need 209 positions, the model has 200"):
        answers(dataclasses.replace(RULE, max_new_tokens=200), embeddings, mask)
    with pytest.raises(UserError, match="give it a key"):
        answers(dataclasses.replace(RULE, mode="sample"), embeddings, mask)
    with pytest.raises(UserError, match="token 99, the model has 37"):
        build_trie([[99]], 4, 37)
    with pytest.raises(UserError, match="at least one label"):
        pack_labels([[1], []])
