"""A run of both chain-of-thought stages, as small as it can be, on embedded speech."""

import dataclasses

from c2ser_jax.config import C2serModelConfig, CorpusConfig, CotStage, RunConfig
from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.spoken_scenes import SpokenScenesConfig
from c2ser_jax.tasks.cot import CotConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig
from tests.tiny_answers import MODEL

STAGE = CotStage(
    task=CotConfig(trainable="link_and_lora"),
    batches=DataConfig(
        batch_seconds=8.0, buckets=1, max_seconds=2.0, max_rows=4, row_multiple=4, threads=1
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant"),
    loop=LoopConfig(steps=2, log_every=1),
)


def get_config() -> RunConfig:
    """Two steps of each stage on four speakers, from nothing.

    The vocabulary gives both stages' prompts and answers one shape, and so one program.
    """
    return RunConfig(
        name="tiny-answers",
        encoder=MODEL.acoustic,
        data=CorpusConfig(
            corpus="spoken_scenes",
            spoken_scenes=SpokenScenesConfig(
                speakers=4, utterances=1, languages=("en", "zh"), min_words=1, max_words=2
            ),
        ),
        c2ser=C2serModelConfig(
            encoder=dataclasses.replace(MODEL.encoder, positions=100),
            connector=dataclasses.replace(MODEL.connector, positions=90),
            llm=dataclasses.replace(MODEL.llm, vocabulary=512, max_positions=500),
            acoustic_token_count=MODEL.acoustic_token_count,
        ),
        explicit=STAGE,
        score_answers=False,
        implicit=dataclasses.replace(STAGE, answers=AnswerConfig(explicit_share_end=0.0)),
    )
