"""Whether stored records and configs belong to this run, compared field by field."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.errors import UserError, shortened

# Fields with one of these names, and all fields below them, change neither data nor parameters,
# only where things lie, how they are computed, and what is seen or kept.
FREE_FIELDS = frozenset(
    "workdir output progress tensorboard log_every save_every keep_last keep_every evaluate_every "
    "workers threads mesh versions cache root allow_leakage".split()
)


def run_record(
    description: Mapping[str, Any], *, loop: Any, optimizer: Any, seed: int, fingerprint: str
) -> dict[str, Any]:
    """Returns the JSON that is stored with every checkpoint and compared when a run resumes."""
    record = {
        "description": dict(description),
        "loop": dataclasses.asdict(loop),
        "optimizer": dataclasses.asdict(optimizer),
        "seed": seed,
        "data_fingerprint": fingerprint,
        "versions": _versions(),
    }
    return json.loads(json.dumps(record, default=str))


def check_same_run(
    stored: Mapping[str, Any], current: Mapping[str, Any], workdir: Path, step: int
) -> None:
    """Compares two records. Errors: UserError naming what differs beside `FREE_FIELDS`."""
    if different := differences(stored, current):
        raise UserError(
            f"{workdir} holds step {step} of another run ({different}): "
            "give another --workdir, undo the change, or remove its checkpoints/ to start anew"
        )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Returns "a.b: 1 → 2; …" of two nested JSON tables, "" when only `FREE_FIELDS` differ."""
    before, now = _flat(stored), _flat(current)
    different = [
        f"{name}: {_json(before.get(name))} → {_json(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not FREE_FIELDS.intersection(name.split("."))
    ]
    more = f" and {len(different) - 4} more" if len(different) > 4 else ""
    return "; ".join(different[:4]) + more


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, Mapping):
        return {prefix[:-1]: record}
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat.update(_flat(value, f"{prefix}{key}."))
    return flat


def _json(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))


def _versions() -> dict[str, str]:
    names = ("jax", "flax", "optax", "orbax-checkpoint")
    return {name: importlib.metadata.version(name) for name in names}
