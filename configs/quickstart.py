"""Emotion2Vec-S at toy size on the embedded synthetic speech: a few minutes on two cores."""

from c2ser_jax.config import CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.augmentation import AugmentConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.synthetic import SyntheticConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.frontend_init import FrontEndConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.tasks.probe_recipe import ProbeConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

# A wide first kernel in place of the published seven layers: a fiftieth of their cost, 25 frames a
# second. It starts as a log-mel filterbank and stays one: so few speakers teach it nothing better.
STEM = (ConvLayer(164, 400, 160), ConvLayer(96, 3, 2), ConvLayer(96, 3, 2))


def get_config() -> RunConfig:
    """Pretrains on six synthetic speakers, probes the frozen features on two others."""
    return RunConfig(
        name="quickstart",
        encoder=Emotion2VecConfig(
            width=64, depth=1, prenet_depth=1, heads=4, mlp_ratio=2.0, conv_layers=STEM,
            conv_bias=True, position_width=20, position_depth=4, position_groups=1,
            extra_tokens=2, dropout=0.1, attention_dropout=0.0, mlp_dropout=0.1, prenet_dropout=0.1,
            layer_drop=0.0,
        ),
        front_end=FrontEndConfig(steps=200, rows=16, seconds=1.5, mel_bands=32),
        data=CorpusConfig(
            corpus="synthetic",
            synthetic=SyntheticConfig(speakers=8, utterances=12, unlabelled=8),
            test_share=0.25,
        ),
        pretrain=PretrainStage(
            task=PretrainConfig(
                frame_weight=0.02,
                utterance_weight=0.002,
                category_weight=1.0,
                temperature=0.1,
                data2vec=Data2VecConfig(
                    clone_batch=1, mask_prob=0.3, average_top_k_layers=1, decoder_width=64,
                    decoder_depth=1, decoder_kernel=5, decoder_groups=1,
                ),
            ),
            batches=DataConfig(
                batch_seconds=64.0, buckets=1, max_seconds=2.4, cache=True, sampling="stratified",
                augment=AugmentConfig(speed_probability=0.8, speed=(0.87, 1.15)),
            ),
            optimizer=OptimizerConfig(
                learning_rate=2e-3, weight_decay=0.05, warmup_steps=60, clip_norm=1.0
            ),
            loop=LoopConfig(
                steps=600, log_every=50, save_every=600, ema_decay=0.99,
                trainable=r"(?!encoder/local_encoder/).*",
            ),
        ),
        probe=ProbeConfig(epochs=60),
    )  # fmt: skip
