"""C2SER and its family of speech-emotion systems in JAX/Flax.

Public names load on first use, so importing the package costs nothing and does not import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2ser_jax.errors import UserError
    from c2ser_jax.inference import Model, Prediction, load

__version__ = "0.1.0"

_HOMES = {
    "load": "c2ser_jax.inference",
    "Model": "c2ser_jax.inference",
    "Prediction": "c2ser_jax.inference",
    "UserError": "c2ser_jax.errors",
}

__all__ = ["Model", "Prediction", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
