"""A checkpoint's object tree as JSON plus tensors, so that export can write the same tree back.

Plain values stand for themselves. A JSON table with one key is something else: {"dict": [[key,
value], ...]}, {"ordered": ...} an OrderedDict, {"tuple": [...]}, {"bytes": text}, {"float":
"nan"}, {"weight": [name, dtype, shape]} a tensor that became a parameter, {"carried": [name,
dtype, shape]} a tensor kept as it is.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from conversions.tensors import SAFETENSORS_NAMES, LazyTensor, dtype_named

TREE_LEAF = "source_tree.json"
_STORABLE = frozenset(name for name in SAFETENSORS_NAMES if not name.startswith("float8"))


class Carrier:
    """Collects what export needs: the tree with names in the tensors' places, and those carried.

    `weights` are the tensors (by identity) that become parameters, with their source names. Those
    inside the notes' `state_path` are stored under their own key there; with `anywhere`, wherever
    they stand, under the name that `weights` gives them.
    """

    def __init__(
        self, tree: Any, weights: dict[int, str], notes: dict[str, Any], *, anywhere: bool = False
    ):
        self._weights, self._anywhere = weights, anywhere
        self._names: dict[int, str] = {}
        self._tensors: dict[str, LazyTensor] = {}
        self._state_path = tuple(notes.get("state_path", ()))
        document = {"notes": notes, "tree": self._encode(tree, ())}
        self._text = json.dumps(document, separators=(",", ":")).encode()

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """The carried tensors by the name they are stored under."""
        return self._tensors

    def leaves(self) -> Iterator[tuple[str, tuple[int, ...], Any, Callable[[], np.ndarray]]]:
        """What goes into carried.safetensors: (name, shape, dtype, read), the tree as uint8."""
        text = np.frombuffer(self._text, np.uint8)
        yield TREE_LEAF, text.shape, np.uint8, lambda: text
        for name, tensor in self._tensors.items():
            if tensor.dtype.name in _STORABLE:
                yield name, tensor.shape, tensor.dtype, tensor.read
            else:
                yield name, (tensor.nbytes,), np.uint8, lambda tensor=tensor: _raw(tensor)

    def _encode(self, value: Any, path: tuple) -> Any:
        if isinstance(value, LazyTensor):
            is_weight = id(value) in self._weights
            is_weight &= self._anywhere or path[:-1] == self._state_path
            name = self._carry(value, path) if not is_weight else path[-1]
            if is_weight and self._anywhere:
                name = self._weights[id(value)]
            kind = "weight" if is_weight else "carried"
            return {kind: [name, value.dtype.name, list(value.shape)]}
        if isinstance(value, dict):
            kind = "ordered" if isinstance(value, OrderedDict) else "dict"
            return {kind: [[k, self._encode(v, (*path, k))] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            items = [self._encode(item, (*path, i)) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, bytes):
            return {"bytes": value.decode("latin-1")}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        return value

    def _carry(self, tensor: LazyTensor, path: tuple) -> str:
        if id(tensor) not in self._names:
            name = "/".join(str(key) for key in path)[:400] or "tensor"
            if name in self._tensors or name == TREE_LEAF:
                name = f"{name}#{len(self._tensors)}"
            self._names[id(tensor)] = name
            self._tensors[name] = tensor
        return self._names[id(tensor)]


def _raw(tensor: LazyTensor) -> np.ndarray:
    return tensor.read().reshape(-1).view(np.uint8)


def read_tree(
    carried: dict[str, np.ndarray],
    weight: Callable[[str, np.dtype, tuple[int, ...]], Any],
    kept: Callable[[str, np.ndarray], Any],
    where: str,
) -> tuple[Any, dict[str, Any]]:
    """(tree, notes) as stored; `weight` and `kept` make what stands in a tensor's place.

    The directory is untrusted: anything out of form raises `UserError`.
    """
    try:
        document = json.loads(bytes(carried[TREE_LEAF]))
        notes, tree = document["notes"], _decode(document["tree"], carried, weight, kept)
    except (KeyError, ValueError, TypeError, IndexError, RecursionError, AttributeError) as error:
        raise UserError(
            f"{where} keeps a damaged copy of its source's layout; convert it again"
        ) from error
    if not isinstance(notes, dict):
        raise UserError(f"{where} keeps a damaged copy of its source's layout; convert it again")
    return tree, notes


def _decode(value: Any, carried: dict[str, np.ndarray], weight: Callable, kept: Callable) -> Any:
    def decode(item: Any) -> Any:
        return _decode(item, carried, weight, kept)

    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("dict", "ordered"):
        made: dict = OrderedDict() if kind == "ordered" else {}
        for key, item in content:
            made[key] = decode(item)
        return made
    if kind == "tuple":
        return tuple(decode(item) for item in content)
    if kind == "bytes":
        return content.encode("latin-1")
    if kind == "float":
        return float(content)
    name, dtype, shape = content[0], dtype_named(content[1]), tuple(int(n) for n in content[2])
    if kind == "weight":
        return weight(name, dtype, shape)
    if kind != "carried":
        raise ValueError(f"unknown kind {kind!r}")
    array = np.asarray(carried[name])
    if array.dtype != dtype:
        array = array.view(dtype).reshape(shape)
    if array.shape != shape:
        raise ValueError(f"{name} has another shape")
    return kept(name, array)
