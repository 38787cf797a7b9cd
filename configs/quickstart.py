"""Emotion2Vec-S at toy size on the embedded synthetic speech: a few minutes on two cores."""

from c2ser_jax.config import CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.synthetic import SyntheticConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.frontend_init import FrontEndConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.tasks.probe_recipe import ProbeConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

# A wide first kernel in place of the published seven layers: a fiftieth of their cost, 50 frames/s.
STEM = (ConvLayer(84, 400, 160), ConvLayer(64, 3, 2))


def get_config() -> RunConfig:
    """Pretrains on six synthetic speakers, probes the frozen features on two others."""
    return RunConfig(
        name="quickstart",
        encoder=Emotion2VecConfig(
            width=64, depth=2, prenet_depth=1, heads=4, mlp_ratio=2.0, conv_layers=STEM,
            conv_bias=True, position_width=27, position_depth=3, position_groups=4,
        ),
        front_end=FrontEndConfig(steps=100, rows=16, seconds=1.5, mel_bands=32),
        data=CorpusConfig(
            corpus="synthetic",
            synthetic=SyntheticConfig(speakers=8, utterances=12, unlabelled=8),
            test_share=0.25,
        ),
        pretrain=PretrainStage(
            task=PretrainConfig(
                frame_weight=0.1,
                utterance_weight=0.02,
                category_weight=1.0,
                data2vec=Data2VecConfig(
                    clone_batch=2, average_top_k_layers=2,
                    decoder_width=64, decoder_depth=2, decoder_groups=4,
                ),
            ),
            batches=DataConfig(batch_seconds=64.0, buckets=1, max_seconds=2.4, cache=True),
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=30, clip_norm=1.0),
            loop=LoopConfig(
                steps=200, log_every=25, save_every=200, ema_decay=0.99, ema_end_decay=0.999,
                ema_anneal_steps=200,
            ),
        ),
        probe=ProbeConfig(epochs=60),
    )  # fmt: skip
