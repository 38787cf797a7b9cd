r"""C2SER at 7 B, stage 1: Whisper medium, Emotion2Vec-S and Qwen2-7B learn explicit answers.

python -m c2ser_jax.train --config configs/published/c2ser_explicit.py --data.manifest LIST \
    --initial EMOTION2VEC_S --initial_encoder WHISPER --initial_llm QWEN2

with three directories that `python -m conversions` wrote. Values are those of C2SER-llm/config.yaml
(zxzhao0/C2SER); upstream doesn't say how long it trained. Its training forward hears the acoustic
tokens alone: `--explicit.task.inputs acoustic` repeats that, and gives the speech encoder no
gradient. A step holds four microbatches of 39 s on one device; multiply `batch_seconds` by the
number of devices.
"""

from c2ser_jax.config import C2serModelConfig, CorpusConfig, CotStage, RunConfig
from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.models.augment import SpecAugmentConfig, SpecSubConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.models.lora import LoraConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.tasks.cot import CotConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import DECAY_ALL, OptimizerConfig

LABELS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
MICROBATCHES = 4
FRAMES = 3900  # of 10 ms in a microbatch


def model() -> C2serModelConfig:
    """The whole model, computed in bfloat16 and recomputed block by block in the backward pass."""
    return C2serModelConfig(
        encoder=WhisperEncoderConfig.named(
            "medium", position_dropout=0.1, dropout=0.1, activation_dropout=0.1, dtype="bfloat16",
            remat=True,
        ),
        connector=ConnectorConfig(dtype="bfloat16", remat=True),
        llm=Qwen2Config(
            lora=LoraConfig(rank=8, alpha=32.0, dropout=0.1), dtype="bfloat16", remat=True
        ),
        acoustic_tokens="published",
    )  # fmt: skip


def stage(answers: AnswerConfig) -> CotStage:
    """One of the two stages; they differ in their answers alone."""
    return CotStage(
        task=CotConfig(
            trainable="link_and_encoder_and_lora", spec_augment=SpecAugmentConfig(),
            spec_sub=SpecSubConfig(),
        ),
        answers=answers,
        batches=DataConfig(
            max_seconds=29.0, batch_seconds=MICROBATCHES * FRAMES / 100, buckets=8, scan="header",
            workers=4,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-5, beta1=0.9, beta2=0.99, epsilon=1e-6, weight_decay=0.01,
            decay_exclude=DECAY_ALL, warmup_steps=8000, schedule="published", clip_norm=5.0,
        ),
        loop=LoopConfig(
            steps=40_000, microbatches=MICROBATCHES, log_every=100, save_every=2000,
            frozen_dtype="bfloat16",
        ),
    )  # fmt: skip


def get_config() -> RunConfig:
    """Upstream leaves out answers of more than 200 tokens and audio of more than 29 s, too."""
    return RunConfig(
        name="c2ser-explicit",
        encoder=Emotion2VecConfig(normalize_waveform=False, dtype="bfloat16"),
        data=CorpusConfig(
            corpus="manifest", manifest="train.jsonl", protocol="all", labels=LABELS,
            scan="header",
        ),
        c2ser=model(),
        explicit=stage(AnswerConfig(max_answer_tokens=200, too_long="leave_out")),
    )  # fmt: skip
