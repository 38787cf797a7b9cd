"""Golden Whisper encoders and C2SER connectors as parameter trees, filled by the conversions."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.models.connector import Connector, ConnectorConfig
from c2ser_jax.models.whisper import WhisperEncoder, WhisperEncoderConfig
from c2ser_jax.training.checkpoint import flatten, nest
from conversions.connector_names import (
    UNUSED,
    connector_rules,
    encoder_rules,
    split_speech_marks,
)
from conversions.engine import Table, plan
from conversions.reader import open_checkpoint, state_dict_path
from conversions.whisper_names import TABLES, naming_of

LANGUAGE_MODEL = ("llama_model.", "embed_tokens.", "lm_head.")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if not name.startswith("grad/")}


def shapes_of(**trees) -> dict[str, tuple[int, ...]]:
    flat = flatten({name: nn.meta.unbox(tree)["params"] for name, tree in trees.items()})
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def encoder_shapes(cfg: WhisperEncoderConfig):
    features, lengths = jnp.zeros((1, 4, cfg.mel_bins)), jnp.full((1,), 4, jnp.int32)
    return jax.eval_shape(WhisperEncoder(cfg).init, jax.random.key(0), features, lengths)


def connector_shapes(cfg: ConnectorConfig, token_width: int = 3):
    tokens, frames = jnp.zeros((1, 2, token_width)), jnp.zeros((1, 4, cfg.encoder_width))
    init = Connector(cfg).init
    return jax.eval_shape(init, jax.random.key(0), tokens, frames, jnp.ones((1, 4), bool))


def filled(table: Table, tensors, shapes, source: Path) -> dict:
    made = plan(table, tensors, shapes, source=str(source), hint="")
    return nest({path: make() for path, _, _, make in made.leaves()})


def encoder_params(path: Path, cfg: WhisperEncoderConfig) -> dict:
    """The encoder of a file under any of the three namings."""
    state = open_checkpoint(path).tree
    for key in state_dict_path(state):
        state = state[key]
    naming = naming_of(state)
    assert naming is not None
    tensors = {name: value for name, value in state.items() if name.startswith("encoder.")}
    shapes = shapes_of(encoder=encoder_shapes(cfg))
    return filled(TABLES[naming.title], tensors, shapes, path)["encoder"]


def speech_params(path: Path, encoder: WhisperEncoderConfig, connector: ConnectorConfig) -> dict:
    """{"encoder": ..., "connector": ...} of a C2SER checkpoint."""
    left_out = LANGUAGE_MODEL + UNUSED
    state = split_speech_marks(open_checkpoint(path).tree)
    tensors = {name: value for name, value in state.items() if not name.startswith(left_out)}
    table = Table(connector_rules() + encoder_rules())
    shapes = shapes_of(encoder=encoder_shapes(encoder), connector=connector_shapes(connector))
    return filled(table, tensors, shapes, path)


@functools.cache
def compiled_encoder(cfg: WhisperEncoderConfig):
    return jax.jit(functools.partial(WhisperEncoder(cfg).apply, return_layers=True))


@functools.cache
def compiled_connector(cfg: ConnectorConfig, ssl_only: bool):
    model = Connector(cfg)
    return jax.jit(functools.partial(model.apply, ssl_only=ssl_only, return_layers=True))


def encode(cfg: WhisperEncoderConfig, params, features, lengths):
    return compiled_encoder(cfg)({"params": params}, features, np.asarray(lengths, np.int32))
