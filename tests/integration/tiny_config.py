"""A run of all three stages, as small as it can be, on synthetic speech or a given manifest."""

from c2ser_jax.config import ClassifyStage, CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.data.synthetic import SyntheticConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import ConvLayer, Emotion2VecConfig
from c2ser_jax.models.frontend_init import FrontEndConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.tasks.probe_recipe import ProbeConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

BATCHES = DataConfig(batch_seconds=8.0, buckets=1, max_seconds=2.0, max_rows=6)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)


def get_config() -> RunConfig:
    """Two steps of each stage on four speakers."""
    return RunConfig(
        name="tiny",
        encoder=Emotion2VecConfig(
            width=12, depth=1, prenet_depth=0, heads=2, mlp_ratio=2.0,
            conv_layers=(ConvLayer(20, 400, 160), ConvLayer(8, 4, 4)), conv_bias=True,
            position_width=5, position_depth=1, position_groups=1, extra_tokens=3,
        ),
        front_end=FrontEndConfig(steps=2, rows=2, seconds=0.5, mel_bands=10),
        data=CorpusConfig(
            synthetic=SyntheticConfig(speakers=4, utterances=2, unlabelled=1), max_bad_share=0.5
        ),
        pretrain=PretrainStage(
            task=PretrainConfig(
                category_weight=1.0,
                data2vec=Data2VecConfig(
                    clone_batch=1, average_top_k_layers=1, decoder_width=6, decoder_depth=1,
                    decoder_kernel=3, decoder_groups=1,
                ),
            ),
            batches=BATCHES,
            optimizer=OPTIMIZER,
            loop=LoopConfig(steps=2, log_every=1, ema_decay=0.9),
        ),
        classify=ClassifyStage(
            batches=BATCHES, optimizer=OPTIMIZER, loop=LoopConfig(steps=2, log_every=1)
        ),
        probe=ProbeConfig(epochs=1, hidden=(4,), warmup_epochs=1),
    )  # fmt: skip
