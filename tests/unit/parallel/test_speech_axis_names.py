"""Every axis name of the speech part has a rule, and on a mesh each device hears its own rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models.connector import Connector, ConnectorConfig
from c2ser_jax.models.log_mel import log_mel
from c2ser_jax.models.whisper import WhisperEncoder, WhisperEncoderConfig
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.parallel.rules import RULES, logical_sharding

ENCODER = WhisperEncoderConfig(width=24, depth=2, heads=4, mlp_width=40, positions=50)
CONNECTOR = ConnectorConfig(
    encoder_width=24, width=20, depth=2, heads=5, mlp_width=28, output_width=14, positions=90
)  # fmt: skip

TWO_DEVICES = """
import json
import flax.linen as nn, jax, numpy as np
from c2ser_jax.models.log_mel import log_mel
from c2ser_jax.parallel.mesh import MeshConfig, make_mesh
from c2ser_jax.parallel.rules import RULES, batch_sharding
audio = np.random.default_rng(0).standard_normal((4, 3200)).astype(np.float32)
lengths = np.array([3200, 1600, 999, 0], np.int32)
alone, _ = jax.jit(log_mel)(audio, lengths)
mesh = make_mesh(MeshConfig(fsdp=2))
with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    rows = batch_sharding(mesh)
    run = jax.jit(log_mel, in_shardings=rows, out_shardings=rows)
    inputs = jax.device_put((audio, lengths), rows)
    text = run.lower(*inputs).compile().as_text()
    shared, _ = run(*inputs)
    odd, _ = jax.jit(log_mel)(audio[:3], lengths[:3])
print(json.dumps({"devices": jax.device_count(), "gathers": "all-gather" in text,
                  "shared": float(np.abs(shared - alone).max()),
                  "odd": float(np.abs(odd - alone[:3]).max())}))
"""


def speech():
    key, mask = jax.random.key(0), jnp.ones((2, 8), bool)
    features, frames = jax.eval_shape(log_mel, jnp.zeros((2, 3200)), jnp.ones((2,), jnp.int32))
    encoder = jax.eval_shape(WhisperEncoder(ENCODER).init, key, features, frames)
    frames, tokens = jnp.zeros((2, 8, 24)), jnp.zeros((2, 3, 7))
    connector = jax.eval_shape(Connector(CONNECTOR).init, key, tokens, frames, mask)
    return {"encoder": encoder, "connector": connector}


def test_every_name_has_a_rule(monkeypatch):
    names: set[str] = set()
    original = nn.spmd._logical_to_mesh_axes

    def record(axes, rules=None):
        names.update(name for name in axes or () if isinstance(name, str))
        return original(axes, rules)

    monkeypatch.setattr("flax.linen.spmd._logical_to_mesh_axes", record)
    with jax.set_mesh(make_local_mesh()), nn.logical_axis_rules(RULES):
        boxed = speech()
        logical_sharding(boxed, make_local_mesh())
    assert "batch" in names and names <= {name for name, _ in RULES}
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    leaves = jax.tree.leaves(boxed, is_leaf=is_box)
    assert leaves and all(is_box(leaf) or np.prod(leaf.shape) == 1 for leaf in leaves)


@pytest.fixture(scope="module")
def seen():
    ran = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
             "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_two_devices_transform_their_own_rows(seen):
    assert seen["devices"] == 2 and not seen["gathers"]
    assert seen["shared"] < 1e-5 and seen["odd"] < 1e-5
