"""Chain of thought: the language model learns to answer what it hears, explicitly or in short.

A batch is that of `data/cot_data.py`. Its answers are explicit, implicit or mixed; the task doesn't
tell them apart.

Shapes: B batch, N samples, P prompt tokens, L answer tokens, K compared tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import jax
import jax.numpy as jnp

from c2ser_jax.errors import UserError
from c2ser_jax.models.augment import SpecAugmentConfig, SpecSubConfig, augment, row_keys
from c2ser_jax.models.c2ser import C2ser, C2serConfig, Inputs
from c2ser_jax.models.log_mel import log_mel
from c2ser_jax.objectives.cot import (
    distillation,
    last_tokens,
    token_accuracy,
    token_cross_entropy,
)
from c2ser_jax.tasks.task import Params, Terms, merge_params
from c2ser_jax.tasks.trainable import (
    Trainable,
    replace_params,
    select_params,
    trainable_pattern,
)

TEACHER = "teacher"
"""Where the frozen parameters of the stage-1 teacher lie in the tree."""


@dataclass(frozen=True)
class CotConfig:
    """Objective of both stages.

    `inputs` is what is heard in training: "both" encoders as at inference, or "acoustic", which is
    the published training mode (`only_ssl`). `distillation_weight` above 0 adds KL(teacher ||
    student) on the tokens that end the explicit and the implicit answer alike (the sentence with
    the emotion, its ending token included). The teacher is the model as the stage began, without
    dropout or augmentation; it reads the row's explicit answer, the student whatever the row
    carries. Of it, only what is trained is kept a second time, frozen, in the state.
    """

    trainable: Trainable = "link_and_lora"
    inputs: Inputs = "both"
    label_smoothing: float = 0.0
    distillation_weight: float = 0.0
    spec_augment: SpecAugmentConfig = field(
        default_factory=lambda: SpecAugmentConfig(time_masks=0, frequency_masks=0)
    )
    """On the speech encoder's features, while training; off. The class's defaults are published."""
    spec_sub: SpecSubConfig = field(default_factory=lambda: SpecSubConfig(substitutions=0))

    def __post_init__(self):
        for name, allowed in (("trainable", get_args(Trainable)), ("inputs", get_args(Inputs))):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"{name} is {value!r}: use one of {', '.join(allowed)}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if self.distillation_weight < 0:
            raise UserError(
                f"distillation_weight is {self.distillation_weight}; it must not be negative"
            )


class ChainOfThought:
    """Cross-entropy of the answer's tokens, given prompt and speech."""

    name = "cot"
    ema_paths: str | None = None

    def __init__(self, cfg: CotConfig, model: C2serConfig):
        self.cfg = cfg
        self.model = C2ser(model)
        self.weights: Mapping[str, float] = {"answer": 1.0}
        if cfg.distillation_weight:
            self.weights = {**self.weights, "distillation": cfg.distillation_weight}

    @property
    def trainable(self) -> str:
        """Pattern of the parameter paths that are trained."""
        return trainable_pattern(
            self.cfg.trainable, has_adapters=self.model.cfg.llm.lora is not None
        )

    def init(self, key, batch) -> Params:
        """Parameters {"acoustic", "encoder", "connector", "llm"} for a batch of any size.

        With distillation also {"teacher"}: a copy of what is trained, leaf by leaf the same.
        """
        token, real = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        one = (batch["audio"][:1], batch["audio_samples"][:1], token, real, token, real)
        variables: Any = self.model.init(key, *one)
        params = variables["params"]
        if self.cfg.distillation_weight:
            params = {**params, TEACHER: select_params(params, self.trainable)}
        return params

    def loss(
        self, trainable, frozen, ema, batch, key, step, *, train: bool = True
    ) -> tuple[Terms, Terms]:
        """Terms answer (and distillation) over tokens; metric: token accuracy.

        Without `train`, neither dropout nor augmentation.
        """
        del ema, step
        params = merge_params(trainable, frozen)
        teacher = params.pop(TEACHER, None)
        mel_key, dropout_key = jax.random.split(key)
        mel = self._features(batch)
        heard = self._augmented(mel, mel_key) if train else mel
        logits = self._logits(params, batch, heard, train=train, rngs={"dropout": dropout_key})
        answer, mask = batch["answer"], _mask(batch["answer"], batch["answer_tokens"])
        smoothing = self.cfg.label_smoothing
        terms: Terms = {
            "answer": token_cross_entropy(logits, answer, mask, label_smoothing=smoothing)
        }
        if self.cfg.distillation_weight:
            terms["distillation"] = self._distil(params, teacher, batch, mel, logits)
        return terms, {"token_accuracy": token_accuracy(logits, answer, mask)}

    def predict(self, params, batch):
        """{"log_probability" float32[B] of the batch's answers, "tokens" int32[B, L]}.

        The tokens are the likeliest at every place, given the answer before it.
        """
        logits = self._logits(params, batch, self._features(batch))
        mask = _mask(batch["answer"], batch["answer_tokens"])
        shares = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(shares, batch["answer"][:, :, None], -1)[:, :, 0]
        return {
            "log_probability": jnp.where(mask, picked, 0.0).sum(-1),
            "tokens": jnp.argmax(logits, -1),
        }

    def _features(self, batch):
        """(log-mel float32[B, M, F], int32[B]), or None where the speech encoder hears nothing."""
        if self.cfg.inputs == "acoustic":
            return None
        bins = self.model.cfg.encoder.mel_bins
        return log_mel(batch["audio"], batch["audio_samples"], mel_bins=bins)

    def _augmented(self, mel, key):
        """The features after SpecAugment and SpecSub, each row by a key of its own."""
        if mel is None:
            return None
        features, lengths = mel
        cfg = self.cfg
        masks = cfg.spec_augment.time_masks + cfg.spec_augment.frequency_masks
        features = augment(
            row_keys(key, features.shape[0]), features, lengths,
            spec_augment=cfg.spec_augment if masks else None,
            spec_sub=cfg.spec_sub if cfg.spec_sub.substitutions else None,
        )  # fmt: skip
        return features, lengths

    def _logits(self, params, batch, mel, *, prefix: str = "", **options):
        """float32[B, L, V] of the batch's answers, or of those whose columns have a `prefix`."""
        prompt, answer = batch[f"{prefix}prompt"], batch[f"{prefix}answer"]
        output: Any = self.model.apply(
            {"params": params},
            batch["audio"],
            batch["audio_samples"],
            prompt,
            _mask(prompt, batch[f"{prefix}prompt_tokens"]),
            answer,
            _mask(answer, batch[f"{prefix}answer_tokens"]),
            mel=mel,
            inputs=self.cfg.inputs,
            **options,
        )
        return output.logits

    def _distil(self, params, teacher, batch, mel, logits):
        """(sum, count) over the tokens that both answers of a row end with."""
        shared = batch["shared"]
        said = jax.lax.stop_gradient(
            self._logits(replace_params(params, teacher), batch, mel, prefix="teacher_")
        )
        count = shared.shape[1]
        ends = last_tokens(logits, batch["answer_tokens"], count)
        wanted = last_tokens(said, batch["teacher_answer_tokens"], count)
        return distillation(ends, wanted, shared)


def _mask(tokens, lengths):
    """bool[B, T], True = real, for tokens int32[B, T] of which `lengths` int32[B] are."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]
