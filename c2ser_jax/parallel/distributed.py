"""Runs of several processes: start-up on JAX's own runtime, and host rows to global arrays.

The only caller of `jax.distributed`. Shapes: B rows of the global batch, b rows of this process.
"""

import io
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from c2ser_jax.errors import UserError
from c2ser_jax.parallel.rules import batch_parts, batch_sharding

VARIABLES = ("C2SER_COORDINATOR", "C2SER_PROCESSES", "C2SER_PROCESS_ID")


def initialize_from_environment(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> bool:
    """Joins the other processes of the run; call it before anything touches a device.

    Arguments win over C2SER_COORDINATOR ("host:port"), C2SER_PROCESSES and C2SER_PROCESS_ID. With
    none of them, a job of several SLURM tasks (one per GPU) and a multi-host TPU are recognised by
    JAX itself; otherwise the run is a single process. Returns whether there are several. Errors:
    UserError when only some of the three are given or are no numbers.
    """
    # JAX's own handler would swallow SIGTERM; training notes it itself (training/preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    values = (coordinator, num_processes, process_id)
    given = [
        value if value is not None else os.environ.get(name)
        for value, name in zip(values, VARIABLES, strict=True)
    ]
    if all(value is None for value in given):
        if not _has_cluster():
            return False
        jax.distributed.initialize()
        return jax.process_count() > 1
    if any(value is None for value in given):
        raise UserError(
            f"a run of several processes needs {', '.join(VARIABLES)} together, "
            f"given are {dict(zip(VARIABLES, given, strict=True))}"
        )
    address, count, index = given
    try:
        total, mine = int(count), int(index)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(
            f"{VARIABLES[1]} and {VARIABLES[2]} must be whole numbers: {error}"
        ) from error
    if not 0 <= mine < total:
        raise UserError(f"{VARIABLES[2]} is {mine}, it must be from 0 to {total - 1}")
    if total == 1:
        return False
    # Whatever SLURM's variables say is not about these processes, their GPUs least of all.
    jax.distributed.initialize(str(address), total, mine, cluster_detection_method="deactivate")
    return True


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns this process's rows [b, …] as global arrays [B, …], split by rows over the mesh.

    B = b × the number of shares that `data_share` counts. Errors: UserError when the rows cannot be
    shared out evenly.
    """
    parts = batch_parts(mesh)
    sharding = batch_sharding(mesh)
    shares = data_share(mesh)[1]
    arrays = {}
    for name, rows in batch.items():
        total = rows.shape[0] * shares
        if total % parts:
            raise UserError(
                f"a batch of {total} rows cannot be shared out over {parts} device groups "
                "(mesh data × fsdp): make the batch's rows a multiple of it"
            )
        arrays[name] = jax.make_array_from_process_local_data(sharding, rows)
    return arrays


def data_share(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): which share of every global batch's rows this process must load.

    Processes that only split layers (`tensor`) between them load the same rows.
    """
    parts = batch_parts(mesh)
    local = set(mesh.local_devices)
    slices = batch_sharding(mesh).devices_indices_map((parts,))
    mine = sorted({index[0].start or 0 for device, index in slices.items() if device in local})
    if mine != list(range(mine[0], mine[0] + len(mine))) or parts % len(mine):
        raise UserError(
            f"this mesh gives one process the row groups {mine} of {parts}, which are not one "
            "block: choose --mesh sizes that keep each process's devices together"
        )
    return mine[0] // len(mine), parts // len(mine)


def any_process(mesh: Mesh, flag: bool) -> jax.Array:
    """Returns bool[devices] over the whole mesh, True on this process's devices if `flag`.

    Its `jnp.any` in a jitted program tells every process, at the same step, that one said so.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    rows = np.full((len(mesh.local_devices),), flag)
    return jax.make_array_from_process_local_data(sharding, rows)


def is_main_process() -> bool:
    """Whether this process writes logs and model directories."""
    return jax.process_index() == 0


def gather_bytes(payload: bytes) -> list[bytes]:
    """Returns every process's `payload`, in their order, when all of them have come here.

    On CPU the collectives give up after 30 minutes; on GPUs and TPUs they wait as long as it takes.
    """
    if jax.process_count() == 1:
        return [payload]
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.array([len(payload)], np.int32))[:, 0]
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def from_main_process(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the {name: array} that the main process gives, on every process; waits for all."""
    if jax.process_count() == 1:
        return dict(arrays)
    file = io.BytesIO()
    if is_main_process():
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    with np.load(io.BytesIO(gather_bytes(file.getvalue())[0])) as given:
        return dict(given)


def to_host(tree: Any) -> Any:
    """Returns the tree with every (sharded) array whole, as numpy, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def _has_cluster() -> bool:
    """Whether SLURM or a TPU pod started this process together with others."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return ("SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1) or "," in hosts
