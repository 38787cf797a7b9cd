"""C2SER at toy size on EmoDB, from nothing: Emotion2Vec-S, both stages, and the encoder's probe.

python -m c2ser_jax.train --config configs/emodb/c2ser.py --data.root EMODB

Speakers 03, 09 and 14 are asked about and never trained on. EmoDB has ten sentences, each in every
emotion, so the words tell nothing here; transcripts are German, answers English. The probe of the
same Emotion2Vec-S on the same speakers stands beside the answers. `--initial DIR` with
`--stages explicit implicit probe` takes another run's encoder.
"""

import dataclasses
from pathlib import Path

from c2ser_jax.config import C2serModelConfig, CotStage, RunConfig, load_run
from c2ser_jax.data.augmentation import AugmentConfig
from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.models.augment import SpecAugmentConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.tasks.cot import CotConfig
from c2ser_jax.tasks.probe_recipe import ProbeConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

LONGEST_SECONDS = 9.0  # nothing is cropped: a piece would not say what its transcript says


def stage(answers: AnswerConfig, learning_rate: float, steps: int) -> CotStage:
    """One of the two stages; everything but the acoustic encoder is trained."""
    base = load_run(Path(__file__).with_name("loso.py")).pretrain
    assert base is not None
    return CotStage(
        task=CotConfig(
            trainable="link_and_encoder_and_lora",
            spec_augment=SpecAugmentConfig(max_time_frames=20),
        ),
        answers=answers,
        batches=dataclasses.replace(
            base.batches,
            bucket_seconds=(2.3, 3.0, 4.0, 5.3, LONGEST_SECONDS),
            max_seconds=LONGEST_SECONDS,
            batch_seconds=110.0,
            augment=AugmentConfig(noise_probability=0.5, noise_snr_db=(15.0, 35.0)),
        ),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, weight_decay=0.05, warmup_steps=60, clip_norm=1.0
        ),
        loop=LoopConfig(steps=steps, log_every=50, save_every=steps),
    )


def get_config() -> RunConfig:
    """The recipe of loso.py up to pretraining, then explicit and implicit answers."""
    run = load_run(Path(__file__).with_name("loso.py"))
    return dataclasses.replace(
        run,
        name="emodb-c2ser",
        data=dataclasses.replace(
            run.data, protocol="speakers", test_speakers=("03", "09", "14"), development=True
        ),
        classify=None,
        c2ser=C2serModelConfig(
            encoder=WhisperEncoderConfig(width=96, depth=2, heads=4, mlp_width=192, positions=500),
            connector=ConnectorConfig(
                encoder_width=96, width=96, depth=1, heads=4, mlp_width=192, output_width=128,
                positions=200, position_dropout=0.1, dropout=0.1, activation_dropout=0.1,
            ),
            llm=Qwen2Config(
                vocabulary=512, width=128, depth=2, heads=4, key_value_heads=4, mlp_width=256,
                rope_theta=1e4, tied_head=True, max_positions=512,
            ),
            acoustic_token_count=2,
        ),
        explicit=stage(AnswerConfig(), 2e-3, 500),
        implicit=stage(
            AnswerConfig(explicit_share_start=1.0, explicit_share_end=0.0), 1.5e-3, 400
        ),
        probe=ProbeConfig(epochs=60),
    )  # fmt: skip
