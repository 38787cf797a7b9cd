"""C2SER at 7 B: its counts, a state that is mostly frozen bfloat16, a step that lowers.

Nothing is allocated: shapes come from `eval_shape`, programs from `jax.export`. The published
numbers are those of REAL_SIZES.md.
"""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from c2ser_jax.config import CotStage, RunConfig, load_run
from c2ser_jax.errors import UserError
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.tasks.cot import ChainOfThought
from c2ser_jax.training import optimizer as optimizers
from c2ser_jax.training.state import TrainState, flatten, merge_params, state_shapes
from c2ser_jax.training.step import make_train_step

PUBLISHED = Path(__file__).resolve().parents[2] / "configs" / "published"
PLATFORMS = ("cuda", "tpu")
ROWS, SECONDS, PROMPT, ANSWER = 12, 10, 24, 64

LORA, TRAINED = 15_138_816, 402_163_201
UNUSED = 2_048 + 14_687_745 + 4097 * 3584  # ln_speech, speaker_head, speech rows: counted only
TOTAL = 8_017_779_713
TABLES = 1_536_000 + 5_120_000  # positions of encoder and connector
ACOUSTIC = 93_171_212  # Emotion2Vec-S, which upstream runs in another environment


def stage_of(run: RunConfig) -> CotStage:
    stage = run.explicit or run.implicit
    assert stage is not None
    return stage


def task_of(run: RunConfig) -> ChainOfThought:
    assert run.c2ser is not None
    return ChainOfThought(stage_of(run).task, run.c2ser.model(run.encoder))


def batch_shapes() -> dict[str, jax.ShapeDtypeStruct]:
    integers = {"audio_samples": (), "label": (), "prompt": (PROMPT,), "prompt_tokens": (),
                "answer": (ANSWER,), "answer_tokens": ()}  # fmt: skip
    columns = {n: jax.ShapeDtypeStruct((ROWS, *s), jnp.int32) for n, s in integers.items()}
    audio = jax.ShapeDtypeStruct((ROWS, 16000 * SECONDS), jnp.float32)
    return {**columns, "audio": audio, "explicit": jax.ShapeDtypeStruct((ROWS,), bool)}


@functools.cache
def built() -> tuple[ChainOfThought, CotStage, TrainState]:
    """The task, its stage, and the state's shapes on one device."""
    run = load_run(PUBLISHED / "c2ser_explicit")
    task, stage = task_of(run), stage_of(run)
    state = state_shapes(
        task, optimizers.build(stage.optimizer, stage.loop.steps), batch_shapes(),
        mesh=make_local_mesh(), trainable=task.trainable, frozen_dtype=stage.loop.frozen_dtype,
        frozen_dtype_paths=stage.loop.frozen_dtype_paths,
    )  # fmt: skip
    return task, stage, state


def count(leaves) -> int:
    return sum(math.prod(leaf.shape) for leaf in leaves)


def test_the_parts_add_up_to_the_published_total():
    _, _, state = built()
    params = flatten(merge_params(state.trainable, state.frozen))
    acoustic = count(leaf for path, leaf in params.items() if path.startswith("acoustic/"))
    tables = count(leaf for path, leaf in params.items() if path.endswith("positions"))
    assert acoustic == ACOUSTIC
    held = count(params.values()) - acoustic - tables
    assert held + UNUSED == TOTAL
    assert count(flatten(state.trainable).values()) + UNUSED == TRAINED


def test_all_that_is_frozen_lies_in_half_precision_and_only_the_trained_have_slots():
    _, _, state = built()
    frozen = flatten(state.frozen)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in frozen.values())
    base = {p: leaf for p, leaf in frozen.items() if p.startswith("llm/")}
    rest = {p.split("/")[0]: p for p in frozen if p not in base}
    assert rest.keys() == {"acoustic", "encoder", "connector"}  # of the last two, the tables
    assert count(frozen.values()) - count(base.values()) == ACOUSTIC + TABLES
    assert 2 * count(base.values()) == 2 * 7_615_616_512  # 15.23 GB
    trained = flatten(state.trainable)
    assert all(leaf.dtype == jnp.float32 for leaf in trained.values())
    assert count(leaf for path, leaf in trained.items() if path.startswith("llm/")) == LORA
    slots = [leaf for leaf in jax.tree.leaves(state.opt) if leaf.ndim]
    assert count(slots) == 2 * count(trained.values())


def test_a_training_step_lowers_for_accelerators():
    task, stage, state = built()
    step = make_train_step(
        task,
        optimizers.build(stage.optimizer, stage.loop.steps),
        learning_rate=optimizers.learning_rate_schedule(stage.optimizer, stage.loop.steps),
        microbatches=stage.loop.microbatches,
    )
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    flag, stop = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((1,), bool)
    key = jax.eval_shape(lambda: jax.random.key(0))
    exported = jax.export.export(jax.jit(step), platforms=PLATFORMS)(
        plain, flag, batch_shapes(), stop, key
    )
    assert exported.platforms == PLATFORMS
    assert exported.out_avals[0].shape == ()  # the step counter comes first


def test_the_second_stage_is_the_first_with_a_falling_share_so_its_step_is_the_same():
    first, second = (load_run(PUBLISHED / f"c2ser_{name}") for name in ("explicit", "implicit"))
    assert first.explicit is not None and second.implicit is not None
    assert first.c2ser == second.c2ser and first.encoder == second.encoder
    answers = dataclasses.replace(first.explicit.answers, explicit_share_end=0.0)
    assert dataclasses.replace(first.explicit, answers=answers) == second.implicit
    assert second.configured_stages() == ("implicit",) and second.initial
    with pytest.raises(UserError, match="starts from what explicit left"):
        dataclasses.replace(second, initial="")
