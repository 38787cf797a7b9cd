"""C2SER: Emotion2Vec-S and Whisper listen, a connector joins them, a language model answers.

Shapes: B batch, N samples, M mel frames, F mel bins, E acoustic tokens, W their width, S heard
positions, P prompt tokens, L answer tokens, D width of the language model, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from c2ser_jax.errors import UserError
from c2ser_jax.models.config_checks import Complaints, refuse
from c2ser_jax.models.connector import Connector, ConnectorConfig, ConnectorOutput
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig
from c2ser_jax.models.log_mel import log_mel
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config, Qwen2Output
from c2ser_jax.models.whisper import WhisperEncoder, WhisperEncoderConfig

Inputs = Literal["both", "acoustic", "semantic"]
PARTS = ("acoustic", "encoder", "connector", "llm")
"""Names of the parts, first in every parameter path."""


@dataclasses.dataclass(frozen=True)
class C2serConfig:
    """The four parts; the defaults are the released model's with Qwen2-7B.

    `acoustic_tokens`: "model" takes the encoder's extra tokens; "published" its first
    `acoustic_token_count` frames, which the released checkpoint was trained on. `inputs` names what
    is heard: both encoders, or one alone.
    """

    acoustic: Emotion2VecConfig = dataclasses.field(default_factory=Emotion2VecConfig)
    encoder: WhisperEncoderConfig = dataclasses.field(default_factory=WhisperEncoderConfig)
    connector: ConnectorConfig = dataclasses.field(default_factory=ConnectorConfig)
    llm: Qwen2Config = dataclasses.field(default_factory=Qwen2Config)
    acoustic_tokens: Literal["model", "published"] = "model"
    acoustic_token_count: int = 10
    inputs: Inputs = "both"

    def __post_init__(self):
        """Raises UserError for parts that don't fit each other."""
        refuse(self._complaints())

    def _complaints(self) -> Complaints:
        yield (
            self.encoder.width != self.connector.encoder_width,
            f"connector.encoder_width is {self.connector.encoder_width}, the encoder's width is "
            f"{self.encoder.width}: make them equal",
        )
        yield (
            self.acoustic.width > self.connector.encoder_width,
            f"acoustic.width {self.acoustic.width} is more than connector.encoder_width "
            f"{self.connector.encoder_width}: acoustic tokens can be padded but not cut",
        )
        yield (
            self.connector.output_width != self.llm.width,
            f"connector.output_width is {self.connector.output_width}, the language model's width "
            f"is {self.llm.width}: make them equal",
        )
        for name, allowed in (("acoustic_tokens", ("model", "published")),
                              ("inputs", get_args(Inputs))):  # fmt: skip
            value = getattr(self, name)
            yield value not in allowed, f"{name} is {value!r}: use one of {', '.join(allowed)}"
        yield (
            self.acoustic_token_count < 1,
            f"acoustic_token_count is {self.acoustic_token_count}: it must be at least 1",
        )
        yield (
            self.acoustic_tokens == "model"
            and self.acoustic.extra_tokens != self.acoustic_token_count,
            f"acoustic_token_count is {self.acoustic_token_count} but the acoustic encoder has "
            f"{self.acoustic.extra_tokens} extra tokens: make them equal",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "C2serConfig":
        """Rebuilds a config from what `dataclasses.asdict` (and JSON) made of it.

        Raises:
          UserError: a name that is no field of its part, or sizes that no model can have.
        """
        parts = {
            "acoustic": Emotion2VecConfig,
            "encoder": WhisperEncoderConfig,
            "connector": ConnectorConfig,
            "llm": Qwen2Config,
        }
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"the model config has no field {unknown[0]!r}")
        return cls(**{k: parts[k].from_dict(v) if k in parts else v for k, v in values.items()})

    @property
    def max_samples(self) -> int:
        """The longest audio that the encoder has positions for (30 s as published)."""
        return self.encoder.max_samples


@flax.struct.dataclass
class C2serOutput:
    """logits float32[B, L, V] of each answer token, from the position before it; `heard` S long."""

    logits: jax.Array
    heard: ConnectorOutput


class C2ser(nn.Module):
    """From waveform and prompt to an answer. Source: `LLMASR_Model` of C2SER.

    Sequence for the language model: prompt, begin of speech, speech, end of speech, answer; each
    segment is padded on its own, and masks keep padding out of every real position.
    """

    cfg: C2serConfig

    def setup(self):
        """Names the parts as `PARTS` does."""
        self.acoustic = Emotion2Vec(self.cfg.acoustic)
        self.encoder = WhisperEncoder(self.cfg.encoder)
        self.connector = Connector(self.cfg.connector)
        self.llm = Qwen2(self.cfg.llm)

    def __call__(
        self, audio, audio_samples, prompt, prompt_mask, answer, answer_mask, *,
        tokens=None, mel=None, inputs: Inputs | None = None, train: bool = False,
    ) -> C2serOutput:  # fmt: skip
        """Scores answers token by token.

        Args:
          audio, audio_samples, tokens, mel, inputs, train: as `hear` takes them.
          prompt, prompt_mask: int32[B, P], bool[B, P], True = real, padded behind; P may be 0.
          answer, answer_mask: int32[B, L], bool[B, L], the ending token included, padded behind.

        Returns:
          C2serOutput.

        Raises:
          UserError: as `hear`, or more positions than the language model has.
        """
        embeddings, mask, heard = self.listen(
            audio, audio_samples, prompt, prompt_mask, tokens=tokens, mel=mel, inputs=inputs,
            train=train,
        )  # fmt: skip
        B, L = answer.shape
        first = embeddings.shape[1] - 1  # the end of speech predicts the first answer token
        at = jnp.broadcast_to(first + jnp.arange(L), (B, L))
        embeddings = jnp.concatenate([embeddings, self.llm.embed(answer)], 1)
        mask = jnp.concatenate([mask, answer_mask], 1)
        self.check_positions(embeddings.shape[1])
        output: Qwen2Output = self.llm(embeddings=embeddings, mask=mask, at=at, train=train)
        assert output.logits is not None
        return C2serOutput(output.logits, heard)

    def listen(
        self, audio, audio_samples, prompt, prompt_mask, *, tokens=None, mel=None,
        inputs: Inputs | None = None, train: bool = False,
    ):  # fmt: skip
        """What stands before the answer.

        Arguments as for a call.

        Returns:
          (embeddings dtype[B, P + S + 2, D], mask bool[B, P + S + 2], ConnectorOutput).
        """
        heard = self.hear(audio, audio_samples, tokens=tokens, mel=mel, inputs=inputs, train=train)
        B, dtype = heard.mask.shape[0], jnp.dtype(self.cfg.llm.dtype)
        mark = lambda x: jnp.broadcast_to(x.astype(dtype), (B, 1, x.shape[-1]))  # noqa: E731
        embeddings = jnp.concatenate(
            [
                self.llm.embed(prompt),
                mark(heard.begin),
                heard.embeddings.astype(dtype),
                mark(heard.end),
            ],
            1,
        )
        real = jnp.ones((B, 1), bool)
        mask = jnp.concatenate([prompt_mask, real, heard.mask, real], 1)
        return with_logical_constraint(embeddings, ("batch", "time", "width")), mask, heard

    def hear(
        self, audio, audio_samples, *, tokens=None, mel=None, inputs: Inputs | None = None,
        train: bool = False,
    ) -> ConnectorOutput:  # fmt: skip
        """Maps waveforms to the language model's embedding space.

        Args:
          audio: float32[B, N], 16 kHz in [-1, 1]; audio_samples int32[B], real lengths.
          tokens: float[B, E, W], acoustic tokens made elsewhere; None: made here.
          mel: (float32[B, M, F], int32[B]), features and their lengths, such as augmented ones;
            None: made here.
          inputs: what is heard; None: as the config says.
          train: dropout of the trained parts, which draws from the rng collection "dropout"; the
            acoustic encoder is never trained here and never drops.

        Raises:
          UserError: audio longer than the encoder has positions for.
        """
        inputs = inputs or self.cfg.inputs
        if self.is_initializing():  # every part has parameters, whatever is heard
            inputs = "both"
        if tokens is None and inputs != "semantic":
            tokens = self.acoustic_tokens(audio, audio_samples)
        if inputs == "semantic":
            rows = (audio if mel is None else mel[0]).shape[0]
            tokens = jnp.zeros((rows, 0, self.cfg.acoustic.width))
        if inputs == "acoustic":
            return self.connector(tokens, ssl_only=True, train=train)
        if mel is None:
            mel = log_mel(audio, audio_samples, mel_bins=self.cfg.encoder.mel_bins)
        spoken = self.encoder(*mel, train=train)
        return self.connector(tokens, spoken.frames, spoken.mask, train=train)

    def acoustic_tokens(self, audio, audio_samples):
        """Acoustic tokens dtype[B, E, W] of waveforms float32[B, N], int32[B]."""
        found = self.acoustic(audio, audio_samples)
        if self.cfg.acoustic_tokens == "model":
            return found.tokens
        count = self.cfg.acoustic_token_count
        frames = jnp.where(found.frame_mask[:, :, None], found.frames, 0.0)[:, :count]
        return jnp.pad(frames, ((0, 0), (0, count - frames.shape[1]), (0, 0)))

    def check_positions(self, count: int) -> None:
        """Raises UserError when a sequence of `count` positions is more than the model has."""
        if count > self.cfg.llm.max_positions:
            raise UserError(
                f"prompt, speech and answer need {count} positions, the language model has "
                f"{self.cfg.llm.max_positions}: shorten the prompt or the audio"
            )


def language_model(cfg: C2serConfig) -> Qwen2:
    """The language model alone; its parameters are those under "llm"."""
    return Qwen2(cfg.llm)
