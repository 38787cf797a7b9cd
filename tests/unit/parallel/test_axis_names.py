"""Every axis name that a model gives to a parameter or an activation has a rule."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models.heads import DownstreamHead
from c2ser_jax.parallel.mesh import make_local_mesh
from c2ser_jax.parallel.rules import RULES, logical_sharding, unbox
from c2ser_jax.tasks.classify import Classify, ClassifyConfig
from c2ser_jax.tasks.pretrain import Pretrain
from c2ser_jax.training.state import split_params
from tests.integration.tiny_pretraining import LABELS, make_task

BATCH = {
    "audio": jax.ShapeDtypeStruct((4, 6400), jnp.float32),
    "audio_samples": jax.ShapeDtypeStruct((4,), jnp.int32),
    "label": jax.ShapeDtypeStruct((4,), jnp.int32),
}


def trace(task):
    """Returns the boxed parameters; initialisation and loss are traced, nothing is computed."""
    boxed = jax.eval_shape(task.init, jax.random.key(0), BATCH)
    params = unbox(boxed)
    teacher = None if task.ema_paths is None else split_params(params, task.ema_paths)[0]
    jax.eval_shape(task.loss, params, {}, teacher, BATCH, jax.random.key(0), 0)
    return boxed


def pretrain():
    return trace(make_task())


def classify():
    pretraining: Pretrain = make_task()
    return trace(Classify(ClassifyConfig(), pretraining.encoder, LABELS, [3, 4, 5]))


def probe():
    frames, mask = jnp.zeros((2, 7, 5)), jnp.ones((2, 7), bool)
    return jax.eval_shape(DownstreamHead(hidden=6, classes=3).init, jax.random.key(0), frames, mask)


def typo():
    """What a model with a misspelt activation axis would do."""
    jax.eval_shape(lambda x: nn.with_logical_constraint(x, ("batch", "embd")), jnp.zeros((2, 3)))
    return {}


@pytest.fixture
def named(monkeypatch):
    """The names that activations are constrained by while this test runs."""
    names: set[str] = set()
    original = nn.spmd._logical_to_mesh_axes

    def record(axes, rules=None):
        names.update(name for name in axes or () if isinstance(name, str))
        return original(axes, rules)

    monkeypatch.setattr("flax.linen.spmd._logical_to_mesh_axes", record)
    return names


@pytest.mark.parametrize("model", [pretrain, classify, probe])
def test_every_name_has_a_rule(model, named):
    with jax.set_mesh(make_local_mesh()), nn.logical_axis_rules(RULES):
        boxed = model()
        logical_sharding(boxed, make_local_mesh())
    assert "batch" in named and named <= {name for name, _ in RULES}
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    leaves = jax.tree.leaves(boxed, is_leaf=is_box)
    unnamed = [leaf for leaf in leaves if not is_box(leaf) and np.prod(leaf.shape) > 1]
    assert leaves and not unnamed


def test_a_misspelt_name_would_be_noticed(named):
    with jax.set_mesh(make_local_mesh()), nn.logical_axis_rules(RULES):
        typo()
    assert named - {name for name, _ in RULES} == {"embd"}
