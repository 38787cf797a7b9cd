"""Emotion2Vec-S at toy size on the embedded synthetic speech: a few minutes on two cores."""

from c2ser_jax.config import CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.synthetic import SyntheticConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.tasks.probe_recipe import ProbeConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

STEM = (ConvLayer(32, 10, 5), *(ConvLayer(48, 3, 2),) * 4, *(ConvLayer(64, 2, 2),) * 2)


def get_config() -> RunConfig:
    """Pretrains on six synthetic speakers, probes the frozen features on two others."""
    return RunConfig(
        name="quickstart",
        encoder=Emotion2VecConfig(
            width=96, depth=3, prenet_depth=1, heads=4, conv_layers=STEM, position_groups=4
        ),
        data=CorpusConfig(
            corpus="synthetic",
            synthetic=SyntheticConfig(speakers=8, utterances=12, unlabelled=8),
            test_share=0.25,
        ),
        pretrain=PretrainStage(
            task=PretrainConfig(
                category_weight=1.0,
                data2vec=Data2VecConfig(
                    clone_batch=2, average_top_k_layers=3,
                    decoder_width=64, decoder_depth=2, decoder_groups=4,
                ),
            ),
            batches=DataConfig(batch_seconds=48.0, buckets=2, max_seconds=3.0, cache=True),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, clip_norm=1.0),
            loop=LoopConfig(
                steps=150, log_every=25, save_every=150, ema_decay=0.99, ema_end_decay=0.999,
                ema_anneal_steps=150,
            ),
        ),
        probe=ProbeConfig(epochs=60),
    )  # fmt: skip
