"""Low-rank adapters (Hu et al. 2021): their sizes, and adding them into the kernels they adapt.

A `Dense` with a rank holds `lora_a` [I, R] and `lora_b` [R, O] beside its `kernel`; its output is
base + alpha / rank * (dropout(x) @ lora_a @ lora_b), as in huggingface/peft.

Shapes: I input features, O output features, R rank, L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from c2ser_jax.errors import UserError

FACTORS = ("lora_a", "lora_b")
"""The names of the two factors inside a Dense."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Sizes of the adapters and which projections have one; the defaults are C2SER's."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")

    def __post_init__(self):
        """Raises UserError for a rank, a scale or a dropout that means nothing."""
        object.__setattr__(self, "targets", tuple(self.targets))  # a list has no hash
        if self.rank < 1:
            raise UserError(f"lora rank is {self.rank}: it must be at least 1, or leave lora out")
        if self.alpha <= 0.0:
            raise UserError(f"lora alpha is {self.alpha}: it must be positive")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"lora dropout is {self.dropout}: it must lie in [0, 1)")
        if not self.targets:
            raise UserError("lora targets is empty: name at least one projection such as q_proj")

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / self.rank


def merge(params: Mapping[str, Any], scale: float, *, out_first: bool = True) -> dict[str, Any]:
    """Returns `params` with every adapter added into its kernel, and without the factors.

    params: nested dicts; leaves may be stacked over layers. A kernel keeps its dtype; the sum is
    formed in float32. `scale` is alpha / rank; `out_first` says that kernels are [.., O, I].
    """
    return _shifted(params, scale, out_first, drop=True)


def unmerge(
    params: Mapping[str, Any],
    adapters: Mapping[str, Any],
    scale: float,
    *,
    out_first: bool = True,
) -> dict[str, Any]:
    """Undoes `merge`: takes the adapters out of the kernels again and puts the factors back.

    Public API for who trains on from a merged model; imports merge, nothing here takes it back.

    adapters: a tree that holds the factors (others of its leaves are not looked at), such as the
    one that was merged. Equal to the kernels before merging up to rounding.

    Raises:
      UserError: a factor belongs to no kernel of `params`, or doesn't fit it.
    """
    return _shifted(_with_factors(params, adapters, ""), -scale, out_first, drop=False)


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (params without the factors, the factors alone), both nested as `params`."""
    base, factors = {}, {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            base[name], inner = split(value)
            if inner:
                factors[name] = inner
        else:
            (factors if name in FACTORS else base)[name] = value
    return base, factors


def _shifted(tree: Mapping[str, Any], scale: float, out_first: bool, drop: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            made[name] = _shifted(value, scale, out_first, drop)
        elif name not in FACTORS or not drop:
            made[name] = value
    if all(name in tree for name in (*FACTORS, "kernel")):
        kernel = jnp.asarray(tree["kernel"])
        delta = _product(tree["lora_a"], tree["lora_b"]) * scale
        delta = jnp.swapaxes(delta, -1, -2) if out_first else delta
        made["kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return made


def _product(a: Any, b: Any):
    """float32[.., I, O] of factors [.., I, R] and [.., R, O]."""
    a, b = (jnp.asarray(factor, jnp.float32) for factor in (a, b))
    return jnp.matmul(a, b, precision="highest")


def _with_factors(
    params: Mapping[str, Any], adapters: Mapping[str, Any], path: str
) -> dict[str, Any]:
    made = dict(params)
    for name, value in adapters.items():
        where = f"{path}{name}"
        if isinstance(value, Mapping):
            inner = made.get(name)
            if isinstance(inner, Mapping):
                made[name] = _with_factors(inner, value, where + "/")
            elif split(value)[1]:
                raise UserError(f"the model has no {where} for the adapter: give its own adapter")
        elif name in FACTORS:
            kernel = made.get("kernel")
            features = set() if kernel is None else set(kernel.shape[-2:])
            if value.shape[-1 if name == "lora_b" else -2] not in features:
                raise UserError(
                    f"the adapter's {where} {list(value.shape)} fits no kernel of the model: "
                    "give the adapter that was made for it"
                )
            made[name] = value
    return made
