"""Checkpoints: training state through orbax (this is its only importer), and model directories.

The model-directory half needs numpy alone; orbax and jax are imported when training state is first touched.
"""

from c2ser_jax.training.model_directory import (
    ModelDescription,
    flatten,
    leaves_of,
    nest,
    read_carried,
    read_description,
    read_params,
    read_trained_on,
    write_model,
)

__all__ = [
    "ModelDescription",
    "flatten",
    "leaves_of",
    "nest",
    "read_carried",
    "read_description",
    "read_params",
    "read_trained_on",
    "write_model",
]
