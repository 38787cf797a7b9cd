"""emotion2vec base at its published size: pretraining with frame and utterance losses.

python -m c2ser_jax.train --config configs/published/emotion2vec_base.py --data.manifest LIST

Sizes and schedule: FunASR's template.yaml for emotion2vec. Adam and weight decay: data2vec 2.0's
base audio config.
"""

from c2ser_jax.config import CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.parallel.mesh import MeshConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig


def get_config() -> RunConfig:
    """93 M parameters without the decoder; bf16 compute, float32 parameters."""
    return RunConfig(
        name="emotion2vec-base",
        encoder=Emotion2VecConfig(dtype="bfloat16", remat=True),
        data=CorpusConfig(
            corpus="manifest", manifest="train.jsonl", protocol="all", scan="header"
        ),
        mesh=MeshConfig(data=-1),
        pretrain=PretrainStage(
            task=PretrainConfig(
                frame_weight=1.0,
                utterance_weight=1.0,
                category_weight=0.0,
                data2vec=Data2VecConfig(),
            ),
            batches=DataConfig(
                max_seconds=20.0, batch_seconds=240.0, buckets=8, scan="header", workers=4
            ),
            optimizer=OptimizerConfig(
                learning_rate=7.5e-5, beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.01,
                warmup_steps=8000, schedule="cosine",
            ),
            loop=LoopConfig(
                steps=100_000, log_every=200, save_every=5000, keep_last=3,
                ema_decay=0.999, ema_end_decay=0.99999, ema_anneal_steps=20_000,
            ),
        ),
    )  # fmt: skip
