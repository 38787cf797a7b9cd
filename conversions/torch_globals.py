"""The names a PyTorch checkpoint may use, each with an inert builder."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from conversions.pickle_machine import Builder, Inert, Refused, check_key
from conversions.tensors import TORCH_DTYPES, TORCH_STORAGES, Extent, LazyTensor, dtype_named

MODALITIES = {1: "AUDIO", 2: "IMAGE", 3: "TEXT"}

_NUMPY_SCALARS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

# Configuration containers of older writers: read as their name and state, never created.
_DATA_CLASSES = (
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.base", "ContainerMetadata"),
    ("omegaconf.base", "Metadata"),
    *(
        ("omegaconf.nodes", name)
        for name in (
            "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode BytesNode PathNode"
        ).split()
    ),
)
_TYPE_NAMES = (
    ("typing", "Any"),
    *(("builtins", name) for name in "dict list tuple str int float bool bytes object".split()),
    *(("__builtin__", name) for name in "dict list tuple str int float bool object".split()),
)


@dataclass(frozen=True, eq=False)
class Storage:
    """`count` elements of `dtype`; `place` finds their bytes (late, in the old format)."""

    dtype: np.dtype
    count: int
    place: Callable[[], Extent]


@dataclass(frozen=True, eq=False)
class PendingTensor:
    """A tensor's geometry before its storage has been located."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def located(self) -> LazyTensor:
        """The tensor at its place in the file; raises `UserError` when it reaches outside."""
        return LazyTensor(self.shape, self.dtype, self.storage.place(), self.strides, self.offset)


def storage_fields(persistent_id: Any) -> tuple[np.dtype, str, int, Any]:
    """(dtype, key, count, view) of torch's persistent id ("storage", type, key, device, count)."""
    match persistent_id:
        case ("storage", Builder() as kind, str(key), str(), int(count), *view) if len(view) <= 1:
            name = kind.name.rsplit(".", 1)[-1]
            if name in TORCH_STORAGES and 0 <= count < 1 << 48 and len(key) <= 64:
                return dtype_named(TORCH_STORAGES[name]), key, count, (view or [None])[0]
    raise Refused("names a storage in a way torch never writes")


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > 16:
        raise Refused("holds a tensor without a proper shape")
    if not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise Refused("holds a tensor with an impossible shape, stride or offset")
    return tuple(values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None):
    if not isinstance(storage, Storage):
        raise Refused("builds a tensor from something that is not a storage")
    (offset,) = _integers([offset])
    return PendingTensor(
        storage, dtype or storage.dtype, offset, _integers(shape), _integers(strides)
    )


def _rebuild_tensor(arguments: tuple) -> PendingTensor:
    storage, offset, shape, strides = arguments
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(arguments: tuple) -> PendingTensor:
    storage, offset, shape, strides, _requires_grad, _hooks, *metadata = arguments
    if any(isinstance(note, dict) and any(note.values()) for note in metadata):
        raise Refused("holds a lazily conjugated or negated tensor; save it with .clone() first")
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(arguments: tuple) -> PendingTensor:
    storage, offset, shape, strides, _requires_grad, _hooks, dtype, *_metadata = arguments
    if not isinstance(dtype, Inert) or not dtype.name.startswith("torch."):
        raise Refused("holds a tensor of an unknown type")
    return _tensor(storage, offset, shape, strides, dtype_named(dtype.name.removeprefix("torch.")))


def _rebuild_parameter(arguments: tuple) -> PendingTensor:
    tensor, _requires_grad, _hooks = arguments
    if not isinstance(tensor, PendingTensor):
        raise Refused("builds a parameter from something that is not a tensor")
    return tensor


def _ordered_dict(arguments: tuple) -> OrderedDict:
    if not arguments:
        return OrderedDict()
    ((*pairs,),) = arguments
    for key, _ in pairs:
        check_key(key)
    return OrderedDict((key, value) for key, value in pairs)


def _numpy_dtype(arguments: tuple) -> Inert:
    code = arguments[0]
    if not isinstance(code, str) or code.lstrip("<|=") not in _NUMPY_SCALARS:
        raise Refused("holds a numpy value of an unknown type")
    return Inert(f"numpy.{code.lstrip('<|=')}")


def _numpy_scalar(arguments: tuple) -> Any:
    dtype, data = arguments
    order = dtype.state[1] if isinstance(dtype, Inert) and isinstance(dtype.state, tuple) else "<"
    if not isinstance(dtype, Inert) or not isinstance(data, bytes) or order not in ("<", "|", "="):
        raise Refused("holds a numpy value in an unknown form")
    (value,) = np.frombuffer(data, f"<{dtype.name.removeprefix('numpy.')}").tolist()
    return value


def _encode(arguments: tuple) -> bytes:
    text, encoding = arguments
    if encoding not in ("latin1", "latin-1", "utf-8") or not isinstance(text, str):
        raise Refused("encodes text in an unknown way")
    return text.encode(encoding)


def _modality(arguments: tuple) -> str:
    return MODALITIES[arguments[0]]


def _text(arguments: tuple) -> str:
    (text, *_) = arguments
    if not isinstance(text, str):
        raise Refused("names a device in a way torch never writes")
    return text


def _no_call(arguments: tuple) -> Any:
    raise Refused("calls a type, which no weight file needs")


def _builders() -> dict[tuple[str, str], Any]:
    table: dict[tuple[str, str], Callable[[tuple], Any]] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch", "Size"): lambda arguments: _integers(arguments[0]),
        ("torch", "device"): _text,
        ("torch.serialization", "_get_layout"): _text,
        ("_codecs", "encode"): _encode,
        ("examples.data2vec.data.modality", "Modality"): _modality,
    }
    for module in ("numpy", "numpy._core.multiarray", "numpy.core.multiarray"):
        table[module, "scalar" if "multiarray" in module else "dtype"] = (
            _numpy_scalar if "multiarray" in module else _numpy_dtype
        )
    for name in TORCH_STORAGES:
        for module in ("torch", "torch.cuda", "torch.storage"):
            table[module, name] = _no_call
    for module, name in _DATA_CLASSES:
        table[module, name] = lambda arguments, name=f"{module}.{name}": Inert(
            name, list(arguments)
        )
    built: dict[tuple[str, str], Any] = {
        key: Builder(".".join(key), build) for key, build in table.items()
    }
    built |= {key: Inert(".".join(key)) for key in _TYPE_NAMES}
    built |= {("torch", name): Inert(f"torch.{target}") for name, target in TORCH_DTYPES.items()}
    return built


BUILDERS = _builders()


def locate(tree: Any) -> Any:
    """A copy of a tree with its tensors located and configuration objects turned into plain dicts.

    Attributes of ordered dictionaries (torch's `_metadata` version notes) were never kept.
    """
    located: dict[int, LazyTensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, PendingTensor):
            if id(value) not in located:
                located[id(value)] = value.located()
            return located[id(value)]
        if isinstance(value, OrderedDict):
            return OrderedDict((key, walk(item)) for key, item in value.items())
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, tuple):
            return tuple(walk(item) for item in value)
        return walk(_plain(value)) if isinstance(value, Inert) else value

    return walk(tree)


def _plain(value: Inert) -> Any:
    """What a configuration object holds: its content, its value, its attributes or its name."""
    state = value.state
    if isinstance(state, dict):
        return state["_content"] if "_content" in state else state.get("_val", state)
    return value.name if state is None or not state else state
