"""Which of a C2SER checkpoint's and a Qwen2 folder's tensors become parameters, and which don't.

A checkpoint holds some of the language model's tensors under two names, and a folder may hold what
the checkpoint holds, too: equal copies are restored from the parameter, so nothing is kept twice.
"""

from collections.abc import Mapping
from typing import Any

from c2ser_jax.errors import UserError
from conversions.c2ser_names import LLM, is_unused, own_name
from conversions.connector_names import split_speech_marks
from conversions.engine import Table
from conversions.model_folder import INDEX
from conversions.qwen2 import HEAD
from conversions.qwen2_import import CARRIED
from conversions.reader import Checkpoint, state_dict_path
from conversions.tensors import LazyTensor, same_values

Tensors = dict[str, LazyTensor]
References = dict[int, str]
"""{id of a tensor in a source: the name of the parameter's source that it equals}."""


_SIGN = "speech_llama_proj.weight"
_EMBEDDING = ("llm/embed_tokens/embedding", None)


def state_of(checkpoint: Checkpoint) -> Tensors:
    """The checkpoint's state dict. Errors: UserError for anything else, or overlapping tensors."""
    state = checkpoint.tree
    for key in state_dict_path(state):
        state = state[key]
    is_state = isinstance(state, dict) and len(state) > 0
    if not is_state or not all(isinstance(value, LazyTensor) for value in state.values()):
        raise UserError(f"{checkpoint.path} holds no state dict (a table of named tensors)")
    if _SIGN not in state:
        raise UserError(
            f"{checkpoint.path} is not a C2SER checkpoint: {_SIGN} is missing among its "
            f"{len(state)} tensors"
        )
    total = sum(tensor.nbytes for tensor in state.values())
    if total > 4 * checkpoint.path.stat().st_size + (1 << 20):
        raise UserError(f"{checkpoint.path} would unfold to {total} bytes; save cloned tensors")
    return {str(name): tensor for name, tensor in state.items()}


def weights_of(state: Mapping[str, LazyTensor], prefix: str, tied: bool) -> tuple[Tensors, Tensors]:
    """(tensors that fill parameters, second names of theirs {name: tensor}) of a state dict.

    The speech table shows its two used rows. A second name whose own is missing stands in for it.
    """
    used = {name: tensor for name, tensor in state.items() if not is_unused(name)}
    made, aliases = split_speech_marks(used), {}
    for name, tensor in used.items():
        own = own_name(name, prefix, tied)
        if own is not None:
            del made[name]
            if own in used or own in made:
                aliases[name] = tensor
            else:
                made[own] = tensor
    return made, aliases


def alias_references(
    aliases: Mapping[str, LazyTensor], weights: Mapping[str, LazyTensor], prefix: str, tied: bool
) -> References:
    """References of those second names that hold what their own name holds."""
    made = {}
    for name, tensor in aliases.items():
        own = own_name(name, prefix, tied)
        if own is not None and same_values(tensor, weights[own]):
            made[id(tensor)] = own
    return made


def missing_weights(
    rules: Table, weights: Mapping[str, LazyTensor], folder: Mapping[str, LazyTensor], tied: bool
) -> Tensors:
    """The folder's tensors, behind `LLM`, that fill what `weights` leave open."""
    filled = _places(rules, weights)
    made = {}
    for name, tensor in folder.items():
        match = rules.match(LLM + name)
        is_open = match is None or (match.target, match.layer) not in filled
        if is_open and not CARRIED.fullmatch(name) and not (tied and name == HEAD):
            made[LLM + name] = tensor
    return made


def folder_tree(
    folder: Checkpoint, rules: Table, weights: Mapping[str, LazyTensor]
) -> tuple[dict[str, Any], References, int]:
    """({"files", "state_dict"} to keep of a folder, references, count of tensors left out).

    A tensor that equals the parameter's source is kept as a reference; one that a different tensor
    of the checkpoint overrides is left out, and with it the index of the shards.
    """
    filled = _places(rules, weights)
    state, references = {}, {}
    for name, tensor in folder.tree["state_dict"].items():
        match = rules.match(LLM + name)
        own = None if match is None else filled.get((match.target, match.layer))
        if own is None and name == HEAD:  # tied, and spelled out all the same
            own = filled.get(_EMBEDDING)
        if own in (None, LLM + name):
            state[name] = tensor
        elif same_values(tensor, weights[own]):
            state[name], references[id(tensor)] = tensor, own
    left_out = len(folder.tree["state_dict"]) - len(state)
    files = {
        name: data
        for name, data in folder.tree["files"].items()
        if not (left_out and name.endswith(INDEX))
    }
    return {"files": files, "state_dict": state}, references, left_out


def _places(rules: Table, weights: Mapping[str, LazyTensor]) -> dict[tuple[str, int | None], str]:
    """{(parameter, layer): name of the tensor that fills it}."""
    found = {}
    for name in weights:
        match = rules.match(name)
        if match is not None:
            found.setdefault((match.target, match.layer), name)
    return found
