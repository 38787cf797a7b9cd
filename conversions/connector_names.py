"""The connector and the speech encoder of a C2SER checkpoint: their names, and the speech marks.

Upstream embeds `speech_token_num` + 2 speech tokens, of which the last two, begin and end of
speech, are ever used. Those two rows become a parameter; the whole table travels for export.

Shapes in the comments are the source's: D width of the speech Transformer, O of the language model.
"""

from collections.abc import Mapping

import numpy as np

from conversions.engine import Rule, unit_axes
from conversions.tensors import LazyTensor
from conversions.whisper_names import WENET, conv_rules, layer_rules, linear_rules, norm_rules

SPEECH_TOKENS = "speech_token_emded.weight"
"""Upstream's spelling; [speech_token_num + 2, O]."""

SPEECH_MARKS = "speech_token_emded.weight[-2:]"
"""The name under which `split_speech_marks` shows the two used rows to the engine."""

UNUSED = ("ln_speech.", "speaker_head.")
"""Beginnings of names that text output never uses: kept for export, not loaded."""

_DOWN_SAMPLE = (1, 4, 7)  # places of the convolutions among upstream's padding and activations

_LAYER = (
    ("self_attn.linear_q", "self_attn/q_proj"),
    ("self_attn.linear_k", "self_attn/k_proj"),
    ("self_attn.linear_v", "self_attn/v_proj"),
    ("self_attn.linear_out", "self_attn/out_proj"),
    ("norm1", "self_attn_layer_norm"),
    ("norm2", "final_layer_norm"),
    ("feed_forward.w_1", "fc1"),
    ("feed_forward.w_2", "fc2"),
)


def connector_rules(target: str = "connector/") -> list[Rule]:
    """The rules that fill a `Connector`'s parameters under the path `target`."""
    rules = []
    for i, place in enumerate(_DOWN_SAMPLE):
        rules += conv_rules(f"down_sample_2.conv.{place}", f"{target}down_sample/conv_{i}")
    source, path = "speech_transformer.", target + "speech_transformer/"
    rules += linear_rules(source + "embed.out.0", path + "embed")
    rules += norm_rules(source + "embed.out.1", path + "embed_norm")
    rules.append(
        Rule(
            source + "embed.pos_enc.pe",  # [1, positions, D]
            path + "positions",
            unit_axes,
            lambda shape: (1, *shape),
        )
    )
    for name, part in _LAYER:
        rules += layer_rules(f"{source}encoders.{{layer}}.{name}", f"{path}encoders/{part}")
    rules += norm_rules(source + "after_norm", path + "after_norm")
    rules += linear_rules("speech_llama_proj", target + "speech_llama_proj")
    rules.append(Rule(SPEECH_MARKS, target + "speech_marks"))
    return rules


def encoder_rules(target: str = "encoder/") -> list[Rule]:
    """The rules that fill a `WhisperEncoder`'s parameters under the path `target`."""
    return WENET.rules("encoder.", target)


def split_speech_marks(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The same tensors, the speech table replaced by its last two rows, named `SPEECH_MARKS`."""
    split = dict(tensors)
    table = split.pop(SPEECH_TOKENS, None)
    if table is not None and len(table.shape) == 2 and table.shape[0] >= 2:
        rows = table.shape[0] - 2
        split[SPEECH_MARKS] = LazyTensor(
            (2, table.shape[1]), table.dtype, table.extent, table.strides,
            table.offset + rows * table.strides[0],
        )  # fmt: skip
    return split


def join_speech_marks(table: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The carried table [speech_token_num + 2, O] with its last two rows replaced, same dtype."""
    joined = np.array(table)
    joined[-2:] = marks
    return joined
