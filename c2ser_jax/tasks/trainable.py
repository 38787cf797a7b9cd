"""Which parameters of the whole model are trained: the published names as patterns of paths.

Source: `fire_module` in wenet/bin/train.py of C2SER. What upstream counts as trainable and this
model doesn't hold: `ln_speech`, `speaker_head` and the rows of the speech table but the last two,
none of which ever gets a gradient. Positional tables are buffers there and never trained here.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

Trainable = Literal[
    "link",
    "encoder",
    "llm",
    "link_and_encoder",
    "link_and_encoder_and_lora",
    "link_and_lora",
    "all",
]
"""The last two are ours: `all` trains every part, the acoustic encoder and the kernels under
adapters included, which suits small models from scratch."""

_TABLES = r"(?!.*positions$)"
_LINK = rf"connector/{_TABLES}"
_ENCODER = rf"encoder/{_TABLES}"
_ADAPTERS = r"llm/.*lora_[ab]$"


def trainable_pattern(name: Trainable, *, has_adapters: bool) -> str:
    """The pattern of the parameter paths that a name trains.

    Without adapters `llm`, and what ends in `lora`, train the whole language model, as upstream's
    do with `use_lora` off.
    """
    llm = _ADAPTERS if has_adapters else "llm/"
    parts = {
        "link": (_LINK,),
        "encoder": (_ENCODER,),
        "llm": (llm,),
        "link_and_encoder": (_LINK, _ENCODER),
        "link_and_encoder_and_lora": (_LINK, _ENCODER, llm),
        "link_and_lora": (_LINK, llm),
        "all": (_LINK, _ENCODER, "llm/", "acoustic/"),
    }
    return f"({'|'.join(parts[name])})"


def select_params(params: Mapping[str, Any], pattern: str, path: str = "") -> dict[str, Any]:
    """The part of nested dicts whose leaves' paths match a pattern from their beginning."""
    chosen = {}
    for name, value in params.items():
        where = f"{path}{name}"
        if isinstance(value, Mapping):
            if inner := select_params(value, pattern, f"{where}/"):
                chosen[name] = inner
        elif re.match(pattern, where):
            chosen[name] = value
    return chosen


def replace_params(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the leaves that `others`, nested alike, has in place of its own."""
    made = dict(params)
    for name, value in others.items():
        inner = made.get(name)
        made[name] = replace_params(inner, value) if isinstance(inner, Mapping) else value
    return made
