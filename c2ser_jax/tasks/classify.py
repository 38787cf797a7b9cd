"""Fine-tuning the encoder with a linear head over emotions, as emotion2vec+.

Shapes: B batch, N samples, D width, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec import Emotion2VecClassifier, Emotion2VecConfig
from c2ser_jax.models.masking import block_mask
from c2ser_jax.objectives.classification import cross_entropy
from c2ser_jax.objectives.contrastive import supervised_contrastive
from c2ser_jax.tasks.task import Params, Terms, merge_params


@dataclass(frozen=True)
class ClassifyConfig:
    """Objective of supervised fine-tuning."""

    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs a class by rows / (classes · rows of the class)."""
    category_weight: float = 0.0
    """Weight of a supervised contrastive term on the pooled vector; 0 leaves it out."""
    temperature: float = 0.07
    mask_prob: float = 0.0
    """Share of the real frames hidden in spans while training (SpecAugment in time); 0: none."""
    mask_length: int = 5

    def __post_init__(self):
        if not 0.0 <= self.mask_prob < 1.0 or self.mask_length < 1:
            raise UserError(
                f"mask_prob is {self.mask_prob} and mask_length {self.mask_length}; "
                "give a share in [0, 1) and at least one frame"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if self.temperature <= 0:
            raise UserError(f"temperature is {self.temperature}; it must be positive")


class Classify:
    """Cross-entropy over emotions; rows labelled -1 carry no loss."""

    name = "classify"
    ema_paths: str | None = None

    def __init__(
        self,
        cfg: ClassifyConfig,
        encoder: Emotion2VecConfig,
        labels: Sequence[str],
        class_counts: Sequence[int] | None = None,
    ):
        """`class_counts`: rows of each class in training, wanted by balanced class weights."""
        self.cfg = cfg
        self.labels = tuple(labels)
        self.model = Emotion2VecClassifier(encoder, len(self.labels))
        self.weights: Mapping[str, float] = {"classification": 1.0}
        if cfg.category_weight:
            self.weights = {**self.weights, "category": cfg.category_weight}
        self._class_weights = self._balance(class_counts)

    def init(self, key, batch) -> Params:
        """Parameters {"encoder", "proj"} for a batch of any size."""
        variables: Any = self.model.init(key, batch["audio"], batch["audio_samples"])
        return variables["params"]

    def loss(
        self, trainable, frozen, ema, batch, key, step, *, train: bool = True
    ) -> tuple[Terms, Terms]:
        """Cross-entropy over labelled rows (and the contrastive term); metric: accuracy.

        Without `train`, neither dropout nor masking.
        """
        del ema, step
        mask_key, dropout_key = jax.random.split(key)
        answer: Any = self.model.apply(
            {"params": merge_params(trainable, frozen)},
            batch["audio"],
            batch["audio_samples"],
            hidden=self._hidden(mask_key, batch) if train else None,
            train=train,
            rngs={"dropout": dropout_key},
        )
        logits, output = answer
        labels = jnp.where(batch["audio_samples"] > 0, batch["label"], -1)
        terms: Terms = {
            "classification": cross_entropy(
                logits,
                labels,
                label_smoothing=self.cfg.label_smoothing,
                class_weights=self._class_weights,
            )
        }
        if self.cfg.category_weight:
            terms["category"] = supervised_contrastive(
                output.pooled, labels, temperature=self.cfg.temperature
            )
        known = labels >= 0
        hits = jnp.sum((jnp.argmax(logits, -1) == labels) & known).astype(jnp.float32)
        return terms, {"accuracy": (hits, jnp.sum(known).astype(jnp.float32))}

    def predict(self, params, batch):
        """{"logits" float32[B, C], "probabilities" float32[B, C]} without dropout."""
        answer: Any = self.model.apply({"params": params}, batch["audio"], batch["audio_samples"])
        logits = answer[0]
        return {"logits": logits, "probabilities": jax.nn.softmax(logits, -1)}

    def _hidden(self, key, batch):
        """bool[B, T], True = hidden; None without masking."""
        if not self.cfg.mask_prob:
            return None
        encoder = self.model.cfg
        rows, samples = batch["audio"].shape
        length = max(1, encoder.frames(samples))

        def draw(key, frames):
            return block_mask(
                key, frames, length=length, mask_prob=self.cfg.mask_prob,
                mask_length=self.cfg.mask_length,
            )  # fmt: skip

        return jax.vmap(draw)(jax.random.split(key, rows), encoder.frames(batch["audio_samples"]))

    def _balance(self, counts: Sequence[int] | None):
        if self.cfg.class_weights == "none":
            return None
        if counts is None or min(counts) == 0:
            raise UserError(
                "class_weights is 'balanced' but a label has no training row; "
                "use 'none' or drop the label from data.labels"
            )
        rows = np.asarray(counts, np.float32)
        return jnp.asarray(rows.sum() / (len(rows) * rows))
