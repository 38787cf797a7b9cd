"""Where every named axis of parameters and activations lies on the mesh: the one table.

Models name axes ("width", "mlp"); only this file knows mesh axes. A mesh axis serves one dimension
of an array, and earlier rules win: activations ("batch", "time", "width") use `fsdp` for the batch,
so their width stays whole, while a kernel ("width", "mlp") is split over `fsdp` and `tensor`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from c2ser_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("qkv", "tensor"),
    ("vocabulary", "tensor"),
    ("width", "fsdp"),
    ("channels", "fsdp"),
    ("embed_in", None),
    ("channels_in", None),
    ("classes", None),
    ("head_dim", None),
    ("kernel", None),
    ("layers", None),
    ("rank", None),
    ("samples", None),
    ("time", None),
    ("tokens", None),
)


def logical_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Returns the unboxed tree of NamedShardings for a tree of (boxed) arrays or ShapeDtypeStructs.

    Leaves without names are replicated. Errors: UserError when a name has no rule or a dimension
    cannot be split evenly: nothing falls back to replication in silence.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        if not _is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, partition(leaf.names, leaf.value.shape, mesh, _readable(path)))

    return jax.tree_util.tree_map_with_path(place, shapes, is_leaf=_is_box)


def unbox(tree: Any) -> Any:
    """Returns the tree without its axis names. Flax's own unbox also constrains placement."""
    return jax.tree.map(lambda leaf: leaf.value if _is_box(leaf) else leaf, tree, is_leaf=_is_box)


def partition(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, path: str
) -> PartitionSpec:
    """Returns the PartitionSpec of an array with named axes; `path` names it in errors."""
    table = dict(RULES)
    unknown = [name for name in names if name is not None and name not in table]
    if unknown or len(names) != len(shape):
        raise UserError(
            f"parameter {path} of shape {list(shape)} has axis names {list(names)}: every axis "
            f"needs a name with a rule in parallel/rules.py ({', '.join(table)})"
        )
    order = {name: rank for rank, (name, _) in enumerate(RULES)}
    axes: list[Any] = [None] * len(shape)
    used: set[str] = set()
    ranked = [i for i, name in enumerate(names) if name is not None]
    for i in sorted(ranked, key=lambda i: order[names[i]]):  # type: ignore[index]
        wanted = table[names[i]]  # type: ignore[index]
        mesh_axes = (wanted,) if isinstance(wanted, str) else wanted or ()
        if used.intersection(mesh_axes):
            continue
        parts = 1
        for axis in mesh_axes:
            parts *= mesh.shape[axis]
        if shape[i] % parts:
            raise UserError(
                f"axis {names[i]!r} of parameter {path} has {shape[i]} entries, which the mesh "
                f"cannot split into {parts} ({' × '.join(mesh_axes)}): choose --mesh sizes that "
                "divide it"
            )
        used.update(mesh_axes)
        axes[i] = wanted
    return PartitionSpec(*axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every batch array: rows over `data` × `fsdp`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of row groups a batch is split into; the global rows must divide by it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _readable(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
