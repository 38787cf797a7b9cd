"""The C2SER family: which tensor of the released checkpoint fills which parameter of the model.

A name with a part before its colon is of another file than the checkpoint: `llm:` the Qwen2
folder's, `emotion2vec:` the Emotion2Vec-S checkpoint's.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.models.c2ser import PARTS, C2ser, C2serConfig
from c2ser_jax.training.checkpoint import flatten
from conversions import emotion2vec, qwen2
from conversions.connector_names import UNUSED, connector_rules, encoder_rules
from conversions.engine import Match, Rule, Table
from conversions.whisper_names import CARRIED as CARRIED_OF_WHISPER

ADAPTED, PLAIN = "llama_model.base_model.model.", "llama_model."
"""What stands before the language model's names with adapters (peft) and without."""

LLM, ACOUSTIC = "llm:", "emotion2vec:"

ALIASES = {"embed_tokens.weight": qwen2.EMBEDDING, "lm_head.weight": qwen2.HEAD}
"""Second names, at the top, of two of the language model's tensors: there or not."""

_INVERSE_FREQUENCIES = r"(llama_model\..*\.rotary_emb\.inv_freq)"


def prefix_of(names: Collection[str]) -> str:
    """What stands before the language model's names in a checkpoint."""
    return ADAPTED if any(name.startswith(ADAPTED) for name in names) else PLAIN


def is_unused(name: str) -> bool:
    """Whether a checkpoint's entry is known and has no place in the model: kept for export."""
    known = CARRIED_OF_WHISPER.fullmatch(name) or re.fullmatch(_INVERSE_FREQUENCIES, name)
    return name.startswith(UNUSED) or known is not None


def own_name(alias: str, prefix: str, tied: bool) -> str | None:
    """The language model's own name for a second one, None for any other name."""
    if alias in ALIASES:
        return own_name(prefix + ALIASES[alias], prefix, tied) or prefix + ALIASES[alias]
    if tied and alias == prefix + qwen2.HEAD:
        return prefix + qwen2.EMBEDDING
    return None


def table(prefix: str, adapted: Collection[str]) -> Table:
    """The rules of the checkpoint, and of the folder behind `LLM`."""
    return Table(
        [
            *encoder_rules(),
            *connector_rules(),
            *llm_rules(prefix, adapted),
            *qwen2.rules(LLM, "llm/"),
        ]
    )


def llm_rules(prefix: str, adapted: Collection[str]) -> list[Rule]:
    """The rules of the language model inside the checkpoint."""
    own = qwen2.rules(prefix, "llm/", adapted)
    return own + (qwen2.adapter_rules(prefix, "llm/") if adapted else [])


class References:
    """Looks up parameters by the names in a source tree: the checkpoint's, `LLM`, `ACOUSTIC`."""

    def __init__(self, prefix: str, adapted: Collection[str]):
        self._table = table(prefix, adapted)

    def part(
        self, params: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        """What of `params` {path: array} the tensor `name` came from; None when nothing fits."""
        match = self.match(name)
        leaf = None if match is None else params.get(match.target)
        return None if match is None or leaf is None else match.within(leaf, shape)

    def match(self, name: str) -> Match | None:
        """Where a tensor lies in the parameters."""
        if not name.startswith(ACOUSTIC):
            return self._table.match(name)
        found = emotion2vec.TABLE.match(name.removeprefix(ACOUSTIC))
        if found is None or not found.target.startswith("encoder/"):
            return None
        return Match(acoustic_path(found.target), found.layer, found.view)


def acoustic_path(path: str) -> str:
    """The path in the whole model of a parameter of an Emotion2Vec-S directory."""
    return "acoustic/" + path.removeprefix("encoder/")


@functools.lru_cache(maxsize=8)
def target_shapes(cfg: C2serConfig) -> dict[str, tuple[int, ...]]:
    """{"acoustic/…" | "encoder/…" | "connector/…" | "llm/…": shape}, from tracing shapes alone."""

    def create() -> Any:
        samples = max(cfg.acoustic.receptive_samples, 640)
        audio, lengths = jnp.zeros((1, samples)), jnp.full((1,), samples, jnp.int32)
        tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        key = jax.random.key(0)
        return C2ser(cfg).init(key, audio, lengths, tokens, mask, tokens, mask)["params"]

    flat = flatten(nn.meta.unbox(jax.eval_shape(create)))
    order = sorted(flat, key=lambda path: PARTS.index(path.split("/")[0]))
    return {path: tuple(flat[path].shape) for path in order}
