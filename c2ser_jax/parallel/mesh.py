"""The device mesh: axes `data` (copies), `fsdp` (copies with split state), `tensor` (split layers).

The only caller of `jax.make_mesh`. Axis types are Auto: the compiler places what the rules leave
open.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from c2ser_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 for at most one of them means all that remain."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if any(n == 0 or n < -1 for n in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"the mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor} is impossible: "
                "give positive numbers, at most one of them -1 (all remaining devices)"
            )


def make_mesh(cfg: MeshConfig) -> Mesh:
    """Returns a mesh over all devices of all processes. Errors: UserError when they do not fit."""
    return _mesh(cfg, jax.devices(), "this run")


def make_local_mesh() -> Mesh:
    """Returns a mesh of this process's first device alone, for work that is not shared out."""
    return _mesh(MeshConfig(data=1), jax.local_devices()[:1], "this process")


def _mesh(cfg: MeshConfig, devices: list[Any], whose: str) -> Mesh:
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    given = 1
    for n in sizes:
        given *= n if n != -1 else 1
    if -1 in sizes and len(devices) % given == 0:
        sizes[sizes.index(-1)] = len(devices) // given
        given = len(devices)
    if given != len(devices):
        raise UserError(
            f"the mesh data={cfg.data} fsdp={cfg.fsdp} tensor={cfg.tensor} needs a multiple of "
            f"{given} devices, {whose} has {len(devices)}: change --mesh.* to fit"
            if -1 in sizes
            else f"the mesh data={cfg.data} fsdp={cfg.fsdp} tensor={cfg.tensor} takes {given} "
            f"devices, {whose} has {len(devices)}: change --mesh.* to fit (-1: all that remain)"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
