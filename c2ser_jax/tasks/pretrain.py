"""Pretraining of Emotion2Vec-S: frame, utterance and category losses in one step.

Labelled and unlabelled rows mix freely: unlabelled ones (label -1) take part in the frame and
utterance losses only.

Shapes: B utterances, C clones, R = B * C rows, N samples, T frames, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from c2ser_jax.errors import UserError
from c2ser_jax.models.data2vec import (
    TEACHER_PATHS,
    Data2Vec,
    Data2VecConfig,
    clone,
    draw_masks,
    frame_targets,
    utterance_targets,
)
from c2ser_jax.models.emotion2vec import Emotion2VecConfig
from c2ser_jax.objectives.contrastive import supervised_contrastive
from c2ser_jax.objectives.data2vec import (
    frame_regression,
    masked_deviation,
    utterance_regression,
)
from c2ser_jax.tasks.task import Params, Terms, merge_params


@dataclass(frozen=True)
class PretrainConfig:
    """The three losses and the network that is masked.

    The weights are the λ of the paper for L_frame, L_utt and L_cate. With the scaling here (means
    over masked frames, rows, and anchors that have a partner) they compare per item.
    """

    frame_weight: float = 1.0
    utterance_weight: float = 0.1
    category_weight: float = 100.0
    temperature: float = 0.07
    """Of the category loss (supervised contrastive over the global microbatch)."""
    data2vec: Data2VecConfig = field(default_factory=Data2VecConfig)

    def __post_init__(self):
        for name in ("frame_weight", "utterance_weight", "category_weight"):
            value = getattr(self, name)
            if value < 0:
                raise UserError(f"{name} is {value}; a weight must not be negative")
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature}; it must be positive")


class Pretrain:
    """L = frame + λ_utt · utterance + λ_cate · category, with an EMA teacher.

    Source: C2SER (arXiv 2502.18186), section on Emotion2Vec-S; data2vec 2.0 for frame and
    utterance losses (fairseq examples/data2vec/models/data2vec2.py).
    """

    name = "pretrain"
    ema_paths: str | None = TEACHER_PATHS

    def __init__(self, cfg: PretrainConfig, encoder: Emotion2VecConfig):
        self.cfg = cfg
        self.encoder = encoder
        self.model = Data2Vec(encoder, cfg.data2vec)
        self.weights: Mapping[str, float] = {
            "frame": cfg.frame_weight,
            "utterance": cfg.utterance_weight,
            "category": cfg.category_weight,
        }

    def init(self, key, batch) -> Params:
        """Parameters {"encoder", "decoder"} for a batch of any size."""
        rows, samples = batch["audio"].shape
        frames = max(1, self.encoder.frames(samples))
        masked = jnp.zeros((rows, frames), bool)
        rngs = {"params": key, "noise": key}
        variables: Any = self.model.init(rngs, batch["audio"], batch["audio_samples"], masked)
        return variables["params"]

    def loss(
        self, trainable, frozen, ema, batch, key, step, *, train: bool = True
    ) -> tuple[Terms, Terms]:
        """Terms frame, utterance, category; metrics on the spread of predictions and targets.

        `batch` may bring its own `masked bool[B, C, T]` (True = hidden); otherwise masks are drawn
        from `key`. Without `train` there is no dropout; frames are masked all the same.
        """
        del step
        cfg = self.cfg.data2vec
        params = merge_params(trainable, frozen)
        mask_key, noise_key, dropout_key = jax.random.split(key, 3)
        student: Any = self.model.apply(
            {"params": params},
            batch["audio"],
            batch["audio_samples"],
            self._masks(mask_key, batch),
            train=train,
            kept_frames=batch["masked"].shape[-1] if "masked" in batch else None,
            method=Data2Vec.student,
            rngs={"noise": noise_key, "dropout": dropout_key},
        )
        layers: Any = self.model.apply(
            {"params": ema},
            student.local_features,
            student.frame_mask,
            method=Data2Vec.teacher,
        )
        real = student.frame_mask
        targets = frame_targets(layers, real, norm=cfg.target_norm)
        whole = utterance_targets(layers, real, kind=cfg.utterance_target, norm=cfg.target_norm)
        clones = student.masked.shape[0] // real.shape[0]
        spoken = real.any(1)
        targets, whole, rows = clone(targets, clones), clone(whole, clones), clone(spoken, clones)
        terms: Terms = {
            "frame": frame_regression(student.predictions, targets, student.masked),
            "utterance": utterance_regression(student.utterance, whole, rows),
            "category": supervised_contrastive(
                student.pooled,
                jnp.where(spoken, batch["label"], -1),
                temperature=self.cfg.temperature,
            ),
        }
        one = jnp.float32(1.0)
        metrics: Terms = {
            "prediction_spread": (masked_deviation(student.predictions, student.masked), one),
            "target_spread": (masked_deviation(targets, student.masked), one),
            "masked_share": (
                jnp.sum(student.masked).astype(jnp.float32),
                jnp.sum(clone(real, clones)).astype(jnp.float32),
            ),
        }
        return terms, metrics

    def predict(self, params, batch):
        """{"pooled" float32[B, D]}: the utterance vector the category loss works on, unmasked."""
        output: Any = self.model.apply(
            {"params": params},
            batch["audio"],
            batch["audio_samples"],
            method=lambda model, *args: model.encoder(*args),
        )
        return {"pooled": output.pooled}

    def _masks(self, key, batch):
        """bool[R, T], True = hidden."""
        if "masked" in batch:
            return batch["masked"].reshape(-1, batch["masked"].shape[-1])
        cfg = self.cfg.data2vec
        rows, samples = batch["audio"].shape
        counts = clone(self.encoder.frames(batch["audio_samples"]), cfg.clone_batch)
        keys = jax.random.split(key, rows * cfg.clone_batch)
        return draw_masks(keys, counts, max(1, self.encoder.frames(samples)), cfg)
