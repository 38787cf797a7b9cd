"""C2SER at toy size: both stages on embedded speech, ten minutes on two cores.

The labels of the embedded corpus take both senses, words and voice; the table at the end names what
either alone could reach at best. Everything is trained from nothing: Emotion2Vec-S first, then the
speech encoder, the connector and the language model together.
"""

from c2ser_jax.config import C2serModelConfig, CorpusConfig, CotStage, PretrainStage, RunConfig
from c2ser_jax.data.cot_data import AnswerConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.spoken_scenes import SpokenScenesConfig
from c2ser_jax.models.connector import ConnectorConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.frontend_init import FrontEndConfig
from c2ser_jax.models.qwen2_config import Qwen2Config
from c2ser_jax.models.whisper import WhisperEncoderConfig
from c2ser_jax.tasks.cot import CotConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

STEM = (ConvLayer(164, 400, 160), ConvLayer(96, 3, 2), ConvLayer(96, 3, 2))
ACOUSTIC = Emotion2VecConfig(
    width=64, depth=1, prenet_depth=1, heads=4, mlp_ratio=2.0, conv_layers=STEM,
    conv_bias=True, position_width=20, position_depth=4, position_groups=1,
    extra_tokens=2, dropout=0.1, attention_dropout=0.0, mlp_dropout=0.1, prenet_dropout=0.1,
    layer_drop=0.0,
)  # fmt: skip
MODEL = C2serModelConfig(
    encoder=WhisperEncoderConfig(width=96, depth=2, heads=4, mlp_width=192, positions=100),
    connector=ConnectorConfig(
        encoder_width=96, width=96, depth=1, heads=4, mlp_width=192, output_width=128,
        positions=64, position_dropout=0.0, dropout=0.0, activation_dropout=0.0,
    ),
    llm=Qwen2Config(
        vocabulary=512, width=128, depth=2, heads=4, key_value_heads=4, mlp_width=256,
        rope_theta=1e4, tied_head=True, max_positions=256,
    ),
    acoustic_token_count=2,
)  # fmt: skip
HELD_OUT = ("s20", "s21", "s22", "s23")


def get_config() -> RunConfig:
    """Forty speakers to learn from, four others to be asked about."""
    # Many small steps: words are told apart, if at all, after a number of updates, not of clips.
    batches = DataConfig(batch_seconds=1.2 * 16, buckets=1, max_seconds=1.2, cache=True)
    return RunConfig(
        name="quickstart-c2ser",
        encoder=ACOUSTIC,
        front_end=FrontEndConfig(steps=200, rows=16, seconds=1.5, mel_bands=32),
        data=CorpusConfig(
            corpus="spoken_scenes",
            spoken_scenes=SpokenScenesConfig(
                speakers=44, utterances=24, min_words=1, max_words=2
            ),
            test_speakers=HELD_OUT,
        ),
        pretrain=PretrainStage(
            task=PretrainConfig(
                frame_weight=0.02, utterance_weight=0.002, category_weight=1.0, temperature=0.1,
                data2vec=Data2VecConfig(
                    clone_batch=1, mask_prob=0.3, average_top_k_layers=1, decoder_width=64,
                    decoder_depth=1, decoder_kernel=5, decoder_groups=1,
                ),
            ),
            batches=DataConfig(
                batch_seconds=1.2 * 32, buckets=1, max_seconds=1.2, cache=True,
                sampling="stratified",
            ),
            optimizer=OptimizerConfig(
                learning_rate=2e-3, weight_decay=0.05, warmup_steps=40, clip_norm=1.0
            ),
            loop=LoopConfig(
                steps=200, log_every=50, save_every=200, ema_decay=0.99,
                trainable=r"(?!encoder/local_encoder/).*",
            ),
        ),
        c2ser=MODEL,
        explicit=CotStage(
            task=CotConfig(trainable="link_and_encoder_and_lora"),
            batches=batches,
            optimizer=OptimizerConfig(
                learning_rate=1.4e-3, weight_decay=0.01, warmup_steps=200, clip_norm=1.0
            ),
            loop=LoopConfig(steps=1400, log_every=100, save_every=1400),
        ),
        implicit=CotStage(
            task=CotConfig(trainable="link_and_encoder_and_lora"),
            answers=AnswerConfig(explicit_share_start=1.0, explicit_share_end=0.0),
            batches=batches,
            optimizer=OptimizerConfig(  # which stays high: short answers come late
                learning_rate=1.2e-3, end_learning_rate=4e-4, schedule="linear",
                weight_decay=0.01, warmup_steps=40, clip_norm=1.0,
            ),
            loop=LoopConfig(steps=2000, log_every=100, save_every=2000),
        ),
    )  # fmt: skip
