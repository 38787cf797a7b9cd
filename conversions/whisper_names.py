"""The encoder's tensors in the three namings of Whisper: Hugging Face, OpenAI, wenet.

Shapes in the comments of the tables are the source's: D width, M mel bins, T positions.
"""

import dataclasses
import re
from collections.abc import Iterable

from conversions.engine import Rule, Table, convolution, linear, unit_axes

_LAYER = (  # ours, Hugging Face, OpenAI, wenet
    ("self_attn/q_proj", "self_attn.q_proj", "attn.query", "self_attn.linear_q"),
    ("self_attn/k_proj", "self_attn.k_proj", "attn.key", "self_attn.linear_k"),
    ("self_attn/v_proj", "self_attn.v_proj", "attn.value", "self_attn.linear_v"),
    ("self_attn/out_proj", "self_attn.out_proj", "attn.out", "self_attn.linear_out"),
    ("self_attn_layer_norm", "self_attn_layer_norm", "attn_ln", "norm1"),
    ("final_layer_norm", "final_layer_norm", "mlp_ln", "norm2"),
    ("fc1", "fc1", "mlp.0", "feed_forward.w_1"),
    ("fc2", "fc2", "mlp.2", "feed_forward.w_2"),
)
_WHOLE = (
    ("conv1", "conv1", "conv1", "embed.conv.0"),
    ("conv2", "conv2", "conv2", "embed.conv.2"),
    ("layer_norm", "layer_norm", "ln_post", "after_norm"),
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """One way to name the encoder's tensors, told by the presence of `sign`.

    `column` of the tables above; `layer` and `positions` follow `encoder.`; `sign` (the positions),
    `conv1` and `fc1` are whole names.
    """

    title: str
    column: int
    layer: str
    positions: str
    sign: str
    conv1: str
    fc1: str

    def rules(self, source: str = "encoder.", target: str = "encoder/") -> list[Rule]:
        """The rules from names beginning with `source` to paths beginning with `target`."""
        rules = [Rule(source + self.positions, target + "positions")]
        if self.title == "wenet":  # [1, T, D]
            shape = lambda shape: (1, *shape)  # noqa: E731
            rules = [Rule(source + self.positions, target + "positions", unit_axes, shape)]
        for names in _WHOLE:
            is_norm = "norm" in names[0]
            name, path = source + names[self.column], target + names[0]
            rules += norm_rules(name, path) if is_norm else conv_rules(name, path)  # [D, M | D, 3]
        for names in _LAYER:
            name = source + self.layer + names[self.column]
            rules += layer_rules(name, target + "layers/" + names[0])
        return rules


HUGGING_FACE = Naming(
    "Hugging Face", 1, "layers.{layer}.", "embed_positions.weight",
    "encoder.embed_positions.weight", "encoder.conv1.weight", "encoder.layers.{layer}.fc1.weight",
)  # fmt: skip
OPENAI = Naming(
    "OpenAI", 2, "blocks.{layer}.", "positional_embedding",
    "encoder.positional_embedding", "encoder.conv1.weight", "encoder.blocks.{layer}.mlp.0.weight",
)  # fmt: skip
WENET = Naming(
    "wenet", 3, "encoders.{layer}.", "embed.pos_enc.pe", "encoder.embed.pos_enc.pe",
    "encoder.embed.conv.0.weight", "encoder.encoders.{layer}.feed_forward.w_1.weight",
)  # fmt: skip
NAMINGS = (HUGGING_FACE, OPENAI, WENET)

CARRIED = re.compile(r"(decoder|ctc)\..*|proj_out\.weight|(encoder|decoder)\.global_cmvn\..*")
"""Whisper's decoder and other heads: kept for export, not loaded."""


def naming_of(names: Iterable[str]) -> Naming | None:
    """The naming that a state dict's names follow; None when it is no Whisper."""
    names = set(names)
    return next((naming for naming in NAMINGS if naming.sign in names), None)


def layer_rules(source: str, target: str) -> list[Rule]:
    """Rules of a norm or a linear layer, told apart by the target's name."""
    return norm_rules(source, target) if target.endswith("norm") else linear_rules(source, target)


def linear_rules(source: str, target: str) -> list[Rule]:
    """Rules of torch's Linear: weight [out, in], bias [out]."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", linear),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def conv_rules(source: str, target: str) -> list[Rule]:
    """Rules of torch's Conv1d: weight [out, in, K], bias [out]."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", convolution),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def norm_rules(source: str, target: str) -> list[Rule]:
    """Rules of torch's LayerNorm."""
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


TABLES = {naming.title: Table(naming.rules()) for naming in NAMINGS}
