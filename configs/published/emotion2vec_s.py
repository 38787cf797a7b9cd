"""Emotion2Vec-S at its published size: the three losses, labelled and unlabelled speech mixed.

python -m c2ser_jax.train --config configs/published/emotion2vec_s.py --data.manifest LIST
and with `--initial DIR` from a converted emotion2vec.

Adam, learning rate, 5 % warm-up and accumulation of two: C2SER (arXiv 2502.18186). The waveform is
not normalised, as in C2SER's extraction.
"""

import dataclasses

from c2ser_jax.config import CorpusConfig, PretrainStage, RunConfig
from c2ser_jax.data.pipeline import DataConfig
from c2ser_jax.models.data2vec import Data2VecConfig
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.tasks.pretrain import PretrainConfig
from c2ser_jax.training.loop import LoopConfig
from c2ser_jax.training.optimizer import OptimizerConfig

LABELS = ("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")


def get_config() -> RunConfig:
    """λ_utt = 0.1 and λ_cate = 100 are the paper's, over upstream's sums; here terms are means."""
    return RunConfig(
        name="emotion2vec-s",
        encoder=dataclasses.replace(
            Emotion2VecConfig(), normalize_waveform=False, dtype="bfloat16", remat=True
        ),
        data=CorpusConfig(
            corpus="manifest", manifest="train.jsonl", protocol="all", labels=LABELS,
            scan="header",
        ),
        pretrain=PretrainStage(
            task=PretrainConfig(
                frame_weight=1.0,
                utterance_weight=0.1,
                category_weight=100.0,
                temperature=0.07,
                data2vec=Data2VecConfig(),
            ),
            batches=DataConfig(
                max_seconds=20.0, batch_seconds=480.0, buckets=8, scan="header", workers=4,
                unknown_labels="unlabelled",
            ),
            optimizer=OptimizerConfig(
                learning_rate=7.5e-5, beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.01,
                warmup_steps=5000, schedule="cosine",
            ),
            loop=LoopConfig(
                steps=100_000, microbatches=2, log_every=200, save_every=5000, keep_last=3,
                ema_decay=0.999, ema_end_decay=0.99999, ema_anneal_steps=75_000,
            ),
        ),
    )  # fmt: skip
