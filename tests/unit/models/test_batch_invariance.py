"""An utterance gives the same features alone, padded, shuffled and in another bucket."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models.emotion2vec import (
    ConvLayer,
    Emotion2Vec,
    Emotion2VecClassifier,
    Emotion2VecConfig,
)

# The stem has the published 320 samples a frame in few, small layers.
CFG = Emotion2VecConfig(
    width=24,
    depth=2,
    prenet_depth=1,
    heads=3,
    conv_layers=(ConvLayer(6, 20, 10), ConvLayer(7, 8, 8), ConvLayer(5, 5, 4)),
    position_width=35,
    position_groups=4,
    extra_tokens=3,
    mlp_ratio=2.0,
)
CLASSES = 5
BUCKETS = {16_000: 8, 64_000: 8, 160_000: 4, 480_000: 2}  # samples: rows
OTHERS = {24_000: 5, 90_000: 3, 481_234: 2}


@functools.cache
def apply(dtype):
    return jax.jit(Emotion2VecClassifier(dataclasses.replace(CFG, dtype=dtype), CLASSES).apply)


@pytest.fixture(scope="module")
def params():
    model = Emotion2VecClassifier(CFG, CLASSES)
    init = jax.jit(model.init)
    variables = init(jax.random.key(0), jnp.zeros((1, 800)), jnp.array([800]))
    generator = np.random.default_rng(1)  # generic weights: zero biases would hide mistakes
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * generator.standard_normal(leaf.shape).astype(np.float32),
        jax.tree.map(np.asarray, nn.meta.unbox(variables)),
    )


@pytest.fixture(scope="module")
def clips():
    """64 clips of 0.1 to 30 s with different loudness and offset."""
    generator = np.random.default_rng(6)
    seconds = np.concatenate([[0.1, 30.0], np.geomspace(0.1, 5.0, 57), np.geomspace(6, 30, 5)])
    clips = []
    for i, length in enumerate((seconds * 16_000).astype(int)):
        tone = np.sin(np.arange(length) * generator.uniform(0.01, 0.3)) * np.exp(-i / 20)
        noise = 0.1 * generator.standard_normal(length)
        clips.append((tone + noise + 0.05).astype(np.float32))
    return clips


def run(params, clips, samples, dtype="float32", fill=0.0):
    audio = np.full((len(clips), samples), fill, np.float32)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    lengths = np.array([len(clip) for clip in clips], np.int32)
    logits, output = jax.device_get(apply(dtype)(params, audio, lengths))
    frames = [row[: CFG.frames(n)] for row, n in zip(output.frames, lengths, strict=True)]
    return list(zip(logits, frames, output.tokens, strict=True))


def bucketed(params, clips, buckets=BUCKETS, order=None, dtype="float32"):
    """Every clip in the first bucket that holds it, taken in the given order."""
    results = [None] * len(clips)
    order = range(len(clips)) if order is None else order
    least = 0
    for samples, rows in buckets.items():
        members = [i for i in order if least < len(clips[i]) <= samples]
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            batch = [clips[i] for i in chosen]
            batch += [np.zeros(0, np.float32)] * (rows - len(chosen))
            for i, result in zip(chosen, run(params, batch, samples, dtype), strict=False):
                results[i] = result
        least = samples
    return results


@pytest.fixture(scope="module")
def reference(params, clips):
    return bucketed(params, clips)


def assert_same(found, wanted):
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=f"clip {i}")


def test_alone_without_padding_equals_in_a_batch(params, clips, reference):
    for i in (0, 1, 37):
        assert_same(run(params, [clips[i]], len(clips[i])), [reference[i]])


def test_order_does_not_matter(params, clips, reference):
    order = np.random.default_rng(3).permutation(len(clips))
    assert_same(bucketed(params, clips, order=order), reference)


def test_another_bucket_does_not_matter(params, clips, reference):
    assert_same(bucketed(params, clips, OTHERS), reference)


def test_what_stands_in_the_padding_does_not_matter(params, clips, reference):
    short = [i for i, clip in enumerate(clips) if 16_000 < len(clip) <= 64_000][:8]
    found = run(params, [clips[i] for i in short], 64_000, fill=np.float32(np.nan))
    assert_same(found, [reference[i] for i in short])


def test_a_shifted_length_shows(params, clips, reference):
    found = run(params, [clips[20][:-320]], 16_000)
    assert np.abs(found[0][2] - reference[20][2]).max() > 1e-3


def test_bfloat16_keeps_the_label_where_it_is_clear(params, clips, reference):
    short = [i for i, clip in enumerate(clips) if len(clip) <= 80_000]
    one, other = (
        bucketed(params, [clips[i] for i in short], buckets, dtype="bfloat16")
        for buckets in (BUCKETS, OTHERS)
    )
    wanted, clear = [reference[i] for i in short], 0
    for (logits, *_), (moved, *_), (exact, *_) in zip(one, other, wanted, strict=True):
        best = np.sort(jax.nn.softmax(exact))[-2:]
        if best[1] - best[0] > 0.02:
            clear += 1
            assert logits.argmax() == moved.argmax() == exact.argmax()
    assert clear > 40


def test_rows_without_audio_are_finite_and_empty(params):
    model = Emotion2Vec(CFG)
    fewest = CFG.receptive_samples
    lengths = np.array([0, fewest - 1, fewest, 16_000], np.int32)
    audio = np.random.default_rng(4).standard_normal((4, 16_000)).astype(np.float32)
    encoder = {"params": params["params"]["encoder"]}
    output = jax.jit(model.apply)(encoder, audio, lengths)
    assert output.frame_mask.sum(1).tolist() == [0, 0, 1, 49]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(output))
    assert not output.pooled[:2].any() and output.pooled[2:].any()
    tiny = jax.jit(model.apply)(encoder, audio[:, :200], np.zeros(4, np.int32))
    assert tiny.frames.shape == (4, 1, CFG.width) and not tiny.frame_mask.any()
