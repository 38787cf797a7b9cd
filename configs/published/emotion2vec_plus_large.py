"""emotion2vec+ large at its published size: fine-tuning to nine classes.

python -m c2ser_jax.train --config configs/published/emotion2vec_plus_large.py \\
    --data.manifest LIST --initial DIR

The recipe of the fine-tuning is not published: learning rate and steps are ours.
"""

from c2ser_jax.config import ClassifyStage, CorpusConfig, RunConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.parallel.mesh import MeshConfig
from c2ser_jax.tasks.classify import ClassifyConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

LABELS = (
    "angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "<unk>",
)  # fmt: skip


def get_config() -> RunConfig:
    """162 M parameters: width 1024, 16 heads, 8 blocks behind 4 prenet blocks."""
    return RunConfig(
        name="emotion2vec-plus-large",
        encoder=Emotion2VecConfig(width=1024, heads=16, dtype="bfloat16", remat=True),
        data=CorpusConfig(corpus="manifest", manifest="train.jsonl", labels=LABELS, scan="header"),
        mesh=MeshConfig(data=-1),
        classify=ClassifyStage(
            task=ClassifyConfig(label_smoothing=0.1),
            batches=DataConfig(
                max_seconds=20.0, batch_seconds=480.0, buckets=8, scan="header", workers=4
            ),
            optimizer=OptimizerConfig(
                learning_rate=5e-5, beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.01,
                warmup_steps=1000, schedule="cosine", clip_norm=5.0,
            ),
            loop=LoopConfig(steps=20_000, log_every=100, save_every=2000, keep_last=3),
        ),
    )  # fmt: skip
