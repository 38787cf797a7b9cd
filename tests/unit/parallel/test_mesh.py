"""Meshes, rules and start-up as far as one device shows them; tests/integration has eight."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from c2ser_jax.errors import UserError
from c2ser_jax.parallel import distributed
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh
from c2ser_jax.parallel.rules import RULES, logical_sharding, partition, unbox

DETECTED = ((), {})
EXPLICIT = (("h:1", 2, 1), {"cluster_detection_method": "deactivate"})
LARGE = SimpleNamespace(shape={"data": 2, "fsdp": 4, "tensor": 2})


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1)])
def test_an_impossible_mesh_gets_a_sentence(sizes):
    with pytest.raises(UserError, match="at most one of them -1"):
        MeshConfig(*sizes)


def test_a_mesh_that_does_not_fit_gets_a_sentence():
    devices = len(jax.devices())
    assert make_mesh(MeshConfig()).shape == {"data": devices, "fsdp": 1, "tensor": 1}
    assert make_local_mesh().size == 1
    for cfg in (MeshConfig(data=devices + 1), MeshConfig(data=-1, tensor=devices + 1)):
        with pytest.raises(UserError, match=f"has {devices}"):
            make_mesh(cfg)


@pytest.mark.parametrize(
    ("names", "shape", "wanted"),
    [
        (("width", "mlp"), (8, 6), ("fsdp", "tensor")),
        (("layers", "width", "qkv"), (3, 8, 6), (None, "fsdp", "tensor")),
        (("batch", "time", "width"), (8, 5, 8), (("data", "fsdp"), None, None)),
        (("width", "batch"), (8, 8), (None, ("data", "fsdp"))),
        (("heads", "mlp"), (2, 6), ("tensor", None)),
        (("tokens", None), (3, 5), (None, None)),
    ],
)
def test_earlier_rules_win_and_a_mesh_axis_serves_once(names, shape, wanted):
    assert partition(names, shape, LARGE, "p") == PartitionSpec(*wanted)


def test_a_dimension_that_does_not_divide_gets_a_sentence():
    with pytest.raises(UserError, match=r"'width' of parameter a/b has 10 .* 4 \(fsdp\)"):
        partition(("width", "mlp"), (10, 6), LARGE, "a/b")


def test_a_name_without_a_rule_is_no_silent_replication():
    with pytest.raises(UserError, match=r"a/b .*'embd'"):
        partition(("embd", "mlp"), (8, 6), LARGE, "a/b")
    with pytest.raises(UserError, match="every axis needs a name"):
        partition(("mlp",), (8, 6), LARGE, "a/b")


def test_boxes_are_read_and_removed():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_logical_partitioning(nn.initializers.ones, ("width", "mlp"))
            return nn.Dense(3, kernel_init=init)(x)

    shapes = jax.eval_shape(Layer().init, jax.random.key(0), jnp.zeros((2, 4)))
    placed = logical_sharding(shapes, make_local_mesh())["params"]["Dense_0"]
    assert placed["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert placed["bias"].spec == PartitionSpec()
    assert unbox(shapes)["params"]["Dense_0"]["kernel"].shape == (4, 3)


def test_every_rule_names_real_mesh_axes_once():
    names = [name for name, _ in RULES]
    assert len(set(names)) == len(names)
    axes = {a for _, rule in RULES for a in ((rule,) if isinstance(rule, str) else rule or ())}
    assert axes == {"data", "fsdp", "tensor"}


def test_one_process_keeps_all_rows():
    mesh = make_local_mesh()
    rows = distributed.to_global({"x": np.arange(6).reshape(3, 2)}, mesh)["x"]
    np.testing.assert_array_equal(rows, np.arange(6).reshape(3, 2))
    assert distributed.data_share(mesh) == (0, 1)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, DETECTED),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, DETECTED),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        (dict(zip(distributed.VARIABLES, ("h:1", "2", "1"), strict=True)), EXPLICIT),
        (
            dict(zip(distributed.VARIABLES, ("h:1", "2", "1"), strict=True))
            | {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
            EXPLICIT,
        ),
        (dict(zip(distributed.VARIABLES, ("h:1", "1", "0"), strict=True)), None),
    ],
)
def test_start_up_follows_the_environment(monkeypatch, environment, wanted):
    calls = []
    for name in (*distributed.VARIABLES, "SLURM_PROCID", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    known = inspect.signature(jax.distributed.initialize).parameters  # noqa: TID251

    def initialize(*arguments, **options):
        assert options.keys() <= known.keys()
        calls.append((arguments, options))

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    distributed.initialize_from_environment()
    assert calls == ([] if wanted is None else [wanted])


def test_slurm_starts_one_process_per_gpu():
    script = Path(__file__).parents[3] / "launch" / "slurm.sh"
    values = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script.read_text(), re.MULTILINE))
    assert values["ntasks-per-node"] == values["gpus-per-node"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("h:1", None, None), "together"),
        (("h:1", 2, 2), "from 0 to 1"),
    ],
)
def test_incomplete_start_up_gets_a_sentence(monkeypatch, arguments, words):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=words):
        distributed.initialize_from_environment(*arguments)
    monkeypatch.setenv("C2SER_COORDINATOR", "h:1")
    monkeypatch.setenv("C2SER_PROCESSES", "two")
    monkeypatch.setenv("C2SER_PROCESS_ID", "0")
    with pytest.raises(UserError, match="whole numbers"):
        distributed.initialize_from_environment()
