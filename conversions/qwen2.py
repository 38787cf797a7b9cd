"""The Qwen2 family: which tensor of a Hugging Face or peft file fills which parameter.

Kernels are stored as torch has them, [out, in], so all of them but the adapters' factors go over
as they are. Shapes in the comments are the source's: D width, F perceptron width, V vocabulary,
R rank, O output and I input features of a projection.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from c2ser_jax.errors import UserError
from c2ser_jax.models.qwen2 import Qwen2, Qwen2Config
from c2ser_jax.training.checkpoint import flatten
from conversions.engine import Rule, Table, linear
from conversions.tensors import LazyTensor

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_OF_BLOCK = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
_BIASED = ("q_proj", "k_proj", "v_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")


def rules(source: str = "", target: str = "", adapted: Collection[str] = ()) -> list[Rule]:
    """The table of the model itself.

    source: what stands before `model.` and `lm_head.` in the file, with its dot, such as
    `llama_model.base_model.model.` in a C2SER checkpoint; target: the same for parameter paths,
    with its slash; adapted: projections that have an adapter, which peft renames to `base_layer`.
    """
    layer = source + "model.layers.{layer}."
    made = [
        Rule(source + EMBEDDING, target + "embed_tokens/embedding"),  # [V, D]
        Rule(source + HEAD, target + "lm_head/embedding"),  # [V, D]
        Rule(source + "model.norm.weight", target + "norm/scale"),
    ]
    for name in _NORMS:
        made.append(Rule(f"{layer}{name}.weight", f"{target}layers/{name}/scale"))
    for name, part in _OF_BLOCK.items():
        base = ".base_layer" if name in adapted else ""
        path = f"{target}layers/{part}/{name}"
        made.append(Rule(f"{layer}{part}.{name}{base}.weight", path + "/kernel"))  # [O, I]
        if name in _BIASED:
            made.append(Rule(f"{layer}{part}.{name}{base}.bias", path + "/bias"))
    return made


def adapter_rules(source: str = "", target: str = "", adapter: str = "default.") -> list[Rule]:
    """The table of the adapters, `source` and `target` as in `rules`.

    adapter: peft's name of the adapter with its dot; a peft directory leaves it out.
    """
    made = []
    for name, part in _OF_BLOCK.items():
        names = f"{source}model.layers.{{layer}}.{part}.{name}."
        path = f"{target}layers/{part}/{name}/"
        made.append(Rule(f"{names}lora_A.{adapter}weight", path + "lora_a", linear))  # [R, I]
        made.append(Rule(f"{names}lora_B.{adapter}weight", path + "lora_b", linear))  # [O, R]
    return made


TABLE = Table(rules())

PEFT = "base_model.model."
"""What stands before `model.` in a peft directory."""

ADAPTER_TABLE = Table(adapter_rules(PEFT, adapter=""))


def adapter_facts(
    tensors: Mapping[str, LazyTensor], source: str, adapter: str = "default."
) -> tuple[int, tuple[str, ...]] | None:
    """(rank, projections with an adapter) that a file's names and shapes tell; None without any.

    Raises:
      UserError: the adapters have different ranks.
    """
    ranks, adapted = {}, set()
    table = Table(adapter_rules(source, adapter=adapter))
    for name, tensor in tensors.items():
        match = table.match(name)
        if match is not None and match.target.endswith("lora_a") and len(tensor.shape) == 2:
            ranks[tensor.shape[0]] = name
            adapted.add(match.target.split("/")[-2])
    if len(ranks) > 1:
        (one, first), (other, second), *_ = ranks.items()
        raise UserError(
            f"adapters of different ranks are not implemented: {first} has rank {one}, {second} "
            f"rank {other}"
        )
    named = tuple(name for name in _OF_BLOCK if name in adapted)
    return (next(iter(ranks)), named) if ranks else None


@functools.lru_cache(maxsize=8)
def target_shapes(cfg: Qwen2Config) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the model's parameters, from tracing it with shapes alone."""

    def create() -> Any:
        return Qwen2(cfg).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]

    tree = nn.meta.unbox(jax.eval_shape(create))
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}
