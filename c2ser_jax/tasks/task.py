"""What the training loop asks of a task, and how trained and frozen parameters become one tree."""

from collections.abc import Mapping
from typing import Any, Protocol

Params = dict[str, Any]
Terms = dict[str, tuple[Any, Any]]


class Task(Protocol):
    """One thing that can be trained: binds a model, its objectives and a batch contract.

    A batch is a dict of arrays with a leading row axis B: `audio float32[B, N]` (16 kHz, in
    [-1, 1]), `audio_samples int32[B]` (real length, 0 = padding row) and what the task names.
    """

    name: str
    weights: Mapping[str, float]
    """Weight of every loss term; 0 means logged only."""
    ema_paths: str | None
    """Regular expression of the parameter paths an EMA teacher follows; None: no teacher."""

    def init(self, key, batch) -> Params:
        """Parameters for the shapes of `batch`, boxed with logical axis names; it can be jitted."""
        ...

    def loss(
        self, trainable, frozen, ema, batch, key, step, *, train: bool = True
    ) -> tuple[Terms, Terms]:
        """Returns ({term: (sum, count)}, {metric: (sum, count)}), float32 scalars.

        `trainable` and `frozen` have disjoint leaves; `ema` holds the teacher or is None; without
        `train` there is no dropout.
        """
        ...

    def predict(self, params, batch) -> dict[str, Any]:
        """What the trained model answers for `batch`: arrays with the row axis first."""
        ...


def merge_params(first: Params, second: Params) -> Params:
    """One nested dict out of two with disjoint leaves."""
    merged = dict(first)
    for name, value in second.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = merge_params(merged[name], value)
        elif name in merged:
            raise ValueError(f"parameter {name!r} is both trained and frozen")
        else:
            merged[name] = value
    return merged
