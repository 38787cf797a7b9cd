"""Sizes and options of the emotion2vec family, and what follows from them."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from c2ser_jax.errors import UserError
from c2ser_jax.models.attention import IMPLEMENTATIONS, Implementation


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """One convolution of the waveform stem."""

    channels: int
    kernel: int
    stride: int


_STEM = (
    ConvLayer(512, 10, 5),
    *(ConvLayer(512, 3, 2),) * 4,
    *(ConvLayer(512, 2, 2),) * 2,
)


@dataclasses.dataclass(frozen=True)
class Emotion2VecConfig:
    """Sizes and options of the encoder; the defaults are emotion2vec base.

    Dropouts act in training only: `input_dropout` before the main blocks, `dropout` after the
    attention's projection, `attention_dropout` on its weights, `activation_dropout` inside the
    perceptron, `mlp_dropout` after it, `prenet_dropout` before the prenet; `layer_drop` and
    `prenet_layer_drop` are the probabilities that a whole block is left out.
    """

    width: int = 768
    depth: int = 8
    prenet_depth: int = 4
    heads: int = 12
    mlp_ratio: float = 4.0
    conv_layers: tuple[ConvLayer, ...] = _STEM
    conv_bias: bool = False
    position_width: int = 95
    position_depth: int = 5
    position_groups: int = 16
    extra_tokens: int = 10
    alibi: bool = True
    alibi_scale: Literal["learned_per_head", "learned", "fixed"] = "learned_per_head"
    alibi_initial_scale: float = 1.0
    learned_alibi_scale_per_layer: bool = False
    norm_epsilon: float = 1e-5
    layer_norm_first: bool = False
    normalize_waveform: bool = True
    input_dropout: float = 0.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    mlp_dropout: float = 0.1
    prenet_dropout: float = 0.1
    layer_drop: float = 0.05
    prenet_layer_drop: float = 0.05
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    attention_implementation: Implementation = "xla"

    def __post_init__(self):
        """Raises UserError for a combination no released or trainable model has."""
        object.__setattr__(self, "conv_layers", tuple(self.conv_layers))  # a list has no hash
        for wrong, sentence in self._complaints():
            if wrong:
                raise UserError(sentence)

    def _complaints(self):
        w = self.width
        yield not self.conv_layers, "conv_layers is empty: give at least one convolution"
        yield (
            self.layer_norm_first,
            "layer_norm_first is true: only post-norm blocks exist here, as in every released "
            "model; set it to false",
        )
        for name in ("width", "heads", "depth", "position_depth", "position_groups"):
            value = getattr(self, name)
            yield value < 1, f"{name} is {value}: it must be at least 1"
        for name in ("prenet_depth", "extra_tokens"):
            value = getattr(self, name)
            yield value < 0, f"{name} is {value}: it must not be negative"
        yield w % self.heads != 0, f"width {w} is not a multiple of heads {self.heads}"
        yield (
            w % self.position_groups != 0,
            f"width {w} is not a multiple of position_groups {self.position_groups}",
        )
        yield (
            self.position_kernel % 2 == 0,
            f"position_width {self.position_width} over position_depth {self.position_depth} gives "
            f"an even kernel of {self.position_kernel}: choose them so that it is odd",
        )
        choices = ("learned_per_head", "learned", "fixed")
        yield (
            self.alibi_scale not in choices,
            f"alibi_scale is {self.alibi_scale!r}: use one of {', '.join(choices)}",
        )
        yield (
            self.dtype not in ("float32", "bfloat16"),
            f"dtype is {self.dtype!r}: use float32 or bfloat16",
        )
        yield (
            self.attention_implementation not in IMPLEMENTATIONS,
            f"attention_implementation is {self.attention_implementation!r}: use one of "
            f"{', '.join(IMPLEMENTATIONS)}",
        )
        for field in dataclasses.fields(self):
            if field.name.endswith(("dropout", "layer_drop")):
                value = getattr(self, field.name)
                yield not 0.0 <= value < 1.0, f"{field.name} is {value}: it must lie in [0, 1)"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Emotion2VecConfig":
        """Rebuilds a config from what `dataclasses.asdict` (and JSON) made of it.

        Raises:
          UserError: a name that is no field, with the nearest one that is.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"the model config has no field {name!r}{hint}")
        values = dict(values)
        if "conv_layers" in values:
            values["conv_layers"] = tuple(
                ConvLayer(**layer) if isinstance(layer, Mapping) else ConvLayer(*layer)
                if not isinstance(layer, ConvLayer) else layer
                for layer in values["conv_layers"]
            )  # fmt: skip
        return cls(**values)

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model hears."""
        return 16000

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        hop = 1
        for layer in self.conv_layers:
            hop *= layer.stride
        return hop

    @property
    def receptive_samples(self) -> int:
        """Samples that one frame sees, and so the fewest that give a frame."""
        samples = 1
        for layer in reversed(self.conv_layers):
            samples = (samples - 1) * layer.stride + layer.kernel
        return samples

    @property
    def position_kernel(self) -> int:
        """Taps of one positional convolution."""
        return max(3, self.position_width // self.position_depth)

    def frames(self, samples):
        """Number of frames that `samples` (an int or an integer array) give; 0 when too few."""
        for layer in self.conv_layers:
            samples = (samples - layer.kernel) // layer.stride + 1
        return samples * (samples > 0)
