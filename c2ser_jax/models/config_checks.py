"""What every model config checks alike, and how one is rebuilt from what was stored of it."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from c2ser_jax.errors import UserError
from c2ser_jax.models.attention import IMPLEMENTATIONS

Config = TypeVar("Config")
Complaints = Iterator[tuple[bool, str]]
"""(whether it holds, the sentence to say then)."""


def config_from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Rebuilds a config from what `dataclasses.asdict` (and JSON) made of it.

    Raises:
      UserError: a name that is no field, with the nearest one that is.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"the model config has no field {name!r}{hint}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values)


def refuse(complaints: Iterable[tuple[bool, str]]) -> None:
    """Raises UserError with the first sentence that holds."""
    for wrong, sentence in complaints:
        if wrong:
            raise UserError(sentence)


def block_complaints(cfg: Any) -> Complaints:
    """What can be wrong with width, heads, dropouts, dtype and attention of a transformer."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if field.type is int or field.type == "int":
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            yield not is_count, f"{field.name} is {value!r}: it must be a whole number, at least 1"
        if field.name.endswith("dropout"):
            yield not 0.0 <= value < 1.0, f"{field.name} is {value}: it must lie in [0, 1)"
    yield (
        cfg.width % cfg.heads != 0,
        f"width {cfg.width} is not a multiple of heads {cfg.heads}",
    )
    yield (
        cfg.dtype not in ("float32", "bfloat16"),
        f"dtype is {cfg.dtype!r}: use float32 or bfloat16",
    )
    yield (
        cfg.attention_implementation not in IMPLEMENTATIONS,
        f"attention_implementation is {cfg.attention_implementation!r}: use one of "
        f"{', '.join(IMPLEMENTATIONS)}",
    )
