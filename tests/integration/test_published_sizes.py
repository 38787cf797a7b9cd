"""The published sizes build to the published parameter counts and lower for every platform.

Nothing is allocated: shapes come from `eval_shape`, programs from `jax.export`.
"""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from c2ser_jax.config import RunConfig, load_run
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.tasks.classify import Classify, ClassifyConfig
from c2ser_jax.tasks.pretrain import Pretrain
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.state import flatten, state_shapes
from c2ser_jax.training.step import make_train_step

PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "published"
PLATFORMS = ("cpu", "cuda", "tpu")
ENCODER, HEAD, DECODER = 93_171_212, 6_921, 619_776
COUNTS = {
    "emotion2vec_base": {"encoder": ENCODER, "decoder": DECODER},
    "emotion2vec_s": {"encoder": ENCODER, "decoder": DECODER},
    "emotion2vec_plus_large": {"encoder": 162_140_185 - 9_225, "proj": 9_225},
}
SECONDS = 5


@functools.cache
def published(name: str):
    """(task, stage) of a published config, made once: what is traced is kept by task."""
    return task_and_stage(load_run(PUBLISHED / name))


def task_and_stage(run: RunConfig):
    if run.pretrain is not None:
        return Pretrain(run.pretrain.task, run.encoder), run.pretrain
    assert run.classify is not None
    return Classify(run.classify.task, run.encoder, run.data.labels), run.classify


def batch_shapes(rows: int):
    return {
        "audio": jax.ShapeDtypeStruct((rows, 16000 * SECONDS), jnp.float32),
        "audio_samples": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }


@functools.cache
def planned(name: str):
    """(task, stage, optimizer, shapes of the training state) of a published config."""
    task, stage = published(name)
    optimizer = optimizers.build(stage.optimizer, stage.loop.steps)
    rows = batch_shapes(2 * stage.loop.microbatches)
    state = state_shapes(task, optimizer, rows, mesh=make_local_mesh(), ema=task.ema_paths)
    return task, stage, optimizer, state


@functools.cache
def lowered_extraction(cfg: Emotion2VecConfig):
    """Extraction of four clips by an encoder, exported for every platform."""
    model, shapes = Emotion2Vec(cfg), batch_shapes(4)

    def encode(params, audio, samples):
        output = model.apply({"params": params}, audio, samples)
        return output.frames, output.tokens

    params = meta.unbox(
        jax.eval_shape(model.init, jax.random.key(0), shapes["audio"], shapes["audio_samples"])
    )["params"]
    return jax.export.export(jax.jit(encode), platforms=PLATFORMS)(
        params, shapes["audio"], shapes["audio_samples"]
    )


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    *_, state = planned(name)
    counts = {
        part: sum(math.prod(leaf.shape) for leaf in flatten(tree).values())
        for part, tree in state.trainable.items()
    }
    assert counts == COUNTS[name]


def test_a_base_sized_classifier_is_emotion2vec_plus_base():
    run = load_run(PUBLISHED / "emotion2vec_base")
    nine = load_run(PUBLISHED / "emotion2vec_plus_large").data.labels
    task = Classify(ClassifyConfig(), run.encoder, nine)
    params = meta.unbox(jax.eval_shape(task.init, jax.random.key(0), batch_shapes(1)))
    assert sum(math.prod(leaf.shape) for leaf in flatten(params).values()) == 93_178_133
    assert ENCODER + HEAD == 93_178_133


@pytest.mark.parametrize("name", COUNTS)
def test_a_training_step_lowers_for_every_platform(name):
    task, stage, optimizer, state = planned(name)
    rows = 2 * stage.loop.microbatches
    step = make_train_step(
        task,
        optimizer,
        learning_rate=optimizers.learning_rate_schedule(stage.optimizer, stage.loop.steps),
        microbatches=stage.loop.microbatches,
        ema_decay=lambda step: jnp.float32(stage.loop.ema_decay),
    )
    flag = jax.ShapeDtypeStruct((), bool)
    key = jax.eval_shape(lambda: jax.random.key(0))
    stop = jax.ShapeDtypeStruct((rows,), bool)
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    exported = jax.export.export(jax.jit(step), platforms=PLATFORMS)(
        plain, flag, batch_shapes(rows), stop, key
    )
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape == ()  # the step counter comes first


@pytest.mark.parametrize("name", COUNTS)
def test_an_extraction_step_lowers_for_every_platform(name):
    run = load_run(PUBLISHED / name)
    exported = lowered_extraction(run.encoder)
    assert exported.platforms == PLATFORMS
    frames, tokens = exported.out_avals
    assert frames.shape == (4, run.encoder.frames(16000 * SECONDS), run.encoder.width)
    assert tokens.shape == (4, 10, run.encoder.width)
