"""Sizes and options of Qwen2 and Qwen2.5, and how to read them off a Hugging Face config."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from c2ser_jax.errors import UserError
from c2ser_jax.models.attention import IMPLEMENTATIONS, Implementation
from c2ser_jax.models.lora import LoraConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of a block, each of which may have an adapter."""

_DTYPES = ("float32", "bfloat16")
_HF_NAMES = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key_value_heads",
    "intermediate_size": "mlp_width",
    "rms_norm_eps": "norm_epsilon",
    "tie_word_embeddings": "tied_head",
    "max_position_embeddings": "max_positions",
}


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Sizes and options of the language model; the defaults are Qwen2-7B.

    `param_dtype` is what frozen weights are stored in (adapters are always float32), `dtype` what
    is computed in; softmax and norms are float32. `scan_layers` stacks the blocks' parameters and
    compiles one block; without it each block has its own, as fast decoding wants them
    (`unstack_layers`). `remat` recomputes a block in the backward pass and keeps its input alone.
    """

    vocabulary: int = 152064
    width: int = 3584
    depth: int = 28
    heads: int = 28
    key_value_heads: int = 4
    mlp_width: int = 18944
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-6
    tied_head: bool = False
    max_positions: int = 131072
    lora: LoraConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    scan_layers: bool = True
    attention_implementation: Implementation = "xla"

    def __post_init__(self):
        """Raises UserError for sizes that no model can have."""
        for wrong, sentence in self._complaints():
            if wrong:
                raise UserError(sentence)

    def _complaints(self):
        for name in ("vocabulary", "width", "depth", "heads", "key_value_heads", "mlp_width",
                     "max_positions"):  # fmt: skip
            value = getattr(self, name)
            yield value < 1, f"{name} is {value}: it must be at least 1"
        yield (
            self.width % self.heads != 0,
            f"width {self.width} is not a multiple of heads {self.heads}",
        )
        yield (
            self.heads % self.key_value_heads != 0,
            f"heads {self.heads} is not a multiple of key_value_heads {self.key_value_heads}",
        )
        yield (
            self.width // self.heads % 2 != 0,
            f"width {self.width} over heads {self.heads} gives an odd head width of "
            f"{self.width // self.heads}: rotary positions need an even one",
        )
        for name in ("rope_theta", "norm_epsilon"):
            value = getattr(self, name)
            yield not value > 0, f"{name} is {value}: it must be positive"
        for name in ("dtype", "param_dtype"):
            value = getattr(self, name)
            yield value not in _DTYPES, f"{name} is {value!r}: use float32 or bfloat16"
        yield (
            self.attention_implementation not in IMPLEMENTATIONS,
            f"attention_implementation is {self.attention_implementation!r}: use one of "
            f"{', '.join(IMPLEMENTATIONS)}",
        )
        for target in self.lora.targets if self.lora else ():
            yield (
                target not in PROJECTIONS,
                f"lora targets names {target!r}: Qwen2 has {', '.join(PROJECTIONS)}",
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    def adapter(self, projection: str) -> LoraConfig | None:
        """The adapter of one projection such as "q_proj", None where it has none."""
        return self.lora if self.lora and projection in self.lora.targets else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Qwen2Config":
        """Rebuilds a config from what `dataclasses.asdict` (and JSON) made of it.

        Raises:
          UserError: a name that is no field, with the nearest one that is.
        """
        values = dict(_known(cls, values, "the model config"))
        if isinstance(lora := values.get("lora"), Mapping):
            lora = dict(_known(LoraConfig, lora, "the lora config"))
            lora["targets"] = tuple(lora.get("targets", LoraConfig().targets))
            values["lora"] = LoraConfig(**lora)
        return cls(**values)

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any], **options: Any) -> "Qwen2Config":
        """The config of a Hugging Face `config.json`, with this class's own fields as `options`.

        Both spellings of the rotary base are read: `rope_theta` and `rope_parameters.rope_theta`.

        Raises:
          UserError: another model type, a size that is missing, or an option not implemented here.
        """
        for wrong, sentence in _unsupported(values):
            if wrong:
                raise UserError(sentence)
        found = {ours: values[name] for name, ours in _HF_NAMES.items() if name in values}
        missing = [name for name, ours in _HF_NAMES.items() if ours not in found]
        if unwanted := [n for n in missing if n not in ("tie_word_embeddings", *_DEFAULTED)]:
            raise UserError(f"the Qwen2 config lacks {unwanted[0]}: give the model's own config")
        for name, ours in _HF_NAMES.items():
            wanted = type(getattr(cls, ours))
            if ours in found and not (
                type(found[ours]) is wanted or wanted is float and type(found[ours]) is int
            ):
                raise UserError(
                    f"the Qwen2 config's {name} is {found[ours]!r:.80}: wanted {wanted.__name__}"
                )
        found.setdefault("tied_head", False)
        theta = _rope(values).get("rope_theta", values.get("rope_theta"))
        return cls(**{**found, "rope_theta": float(theta or 10000.0), **options})

    def to_huggingface(self) -> dict[str, Any]:
        """A Hugging Face `config.json` of these sizes, as transformers 4 writes it."""
        sizes = {name: getattr(self, ours) for name, ours in _HF_NAMES.items()}
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "rope_theta": self.rope_theta,
            **sizes,
        }


_DEFAULTED = ("rms_norm_eps", "max_position_embeddings")


def _rope(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of rotary options under either of its names; empty when there is none."""
    table = values.get("rope_parameters") or values.get("rope_scaling") or {}
    return table if isinstance(table, Mapping) else {"rope_type": table}


def _unsupported(values: Mapping[str, Any]):
    """(whether the config asks for it, the sentence) of everything not implemented here."""
    kind = values.get("model_type", "qwen2")
    yield kind != "qwen2", f"model_type is {kind!r}: only qwen2 (Qwen2 and Qwen2.5) is implemented"
    activation = values.get("hidden_act", "silu")
    yield activation != "silu", f"hidden_act is {activation!r}: only silu is implemented"
    yield (
        bool(values.get("use_sliding_window")),
        "use_sliding_window is true: only full attention is implemented, as in every released "
        "Qwen2 that C2SER uses; set it to false if the context stays within the window",
    )
    sliding = [kind for kind in values.get("layer_types") or () if kind != "full_attention"]
    yield bool(sliding), f"layer_types names {sliding[:1]}: only full_attention is implemented"
    scaling = _rope(values)
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    yield (
        rope != "default",
        f"rope scaling {rope!r} is not implemented: remove it, which limits the context to the "
        "length the model was trained with",
    )
    attention_dropout = values.get("attention_dropout") or 0.0
    yield attention_dropout != 0.0, f"attention_dropout is {attention_dropout}: set it to 0"
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    head = values.get("head_dim")
    yield (
        bool(head and heads and width and head * heads != width),
        f"head_dim {head} times {heads} heads is not hidden_size {width}, which no Qwen2 has",
    )


def _known(cls: type, values: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{what} has no field {name!r}{hint}")
    return values
