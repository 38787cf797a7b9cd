"""Who may import whom, read from the source with ast, so that no import can hide in a function."""

import ast
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Everybody may import these; entry points (c2ser_jax/*.py), extraction/ and answering/ import all.
FREE = ("c2ser_jax.errors",)
ALLOWED: dict[str, tuple[str, ...]] = {
    "models": (),
    "objectives": (),
    "data": (),
    "parallel": (),
    "decoding": ("c2ser_jax.models",),
    "tasks": (
        "c2ser_jax.models",
        "c2ser_jax.objectives",
        "c2ser_jax.decoding",
        "c2ser_jax.data.prompts",
        "c2ser_jax.data.labels",
    ),
    "training": ("c2ser_jax.tasks", "c2ser_jax.parallel"),
    "evaluation": (
        "c2ser_jax.tasks",
        "c2ser_jax.decoding",
        "c2ser_jax.data",
        "c2ser_jax.parallel",
    ),
    "conversions": ("c2ser_jax.models", "c2ser_jax.training.checkpoint"),
}
# What single files may import beside that: the command of data/cot_text.py can ask a language model
# for rationales.
DOORS = {"c2ser_jax/data/cot_text.py": ("c2ser_jax.rationales",)}
# Modules that one file alone may import, and modules no file may.
OWNED = {
    "orbax": "c2ser_jax/training/checkpoint.py",
    "jax.make_mesh": "c2ser_jax/parallel/mesh.py",
    "jax.distributed": "c2ser_jax/parallel/distributed.py",
    "tensorflow": "c2ser_jax/data/sources.py",
    "tensorflow_datasets": "c2ser_jax/data/sources.py",
}
BANNED = ("torch", "conversions", "jax.pmap", "jax._src", "librosa.load")


def imported_names(source: str, package: str) -> dict[str, bool]:
    """Returns {dotted name used: whether it is imported at module level}.

    `from a import b` gives "a.b"; dotted uses such as jax.make_mesh are names, too.
    """
    tree = ast.parse(source)
    names: dict[str, bool] = {}

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            names.update({alias.name: top for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join([*base, node.module or ""]) if node.level else node.module or ""
            names.update({f"{stem.rstrip('.')}.{alias.name}": top for alias in node.names})
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.setdefault(f"{node.value.id}.{node.attr}", top)
        deeper = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            deeper = False
        for child in ast.iter_child_nodes(node):
            visit(child, deeper)

    visit(tree, True)
    return names


def complaints(path: str, source: str) -> list[str]:
    """Returns what is wrong with the imports of one file, given its path from the root."""
    parts = path.split("/")
    package = ".".join(parts[:-1])
    names = imported_names(source, package)
    part = parts[1] if parts[0] == "c2ser_jax" else parts[0]
    wrong = []
    for name, top in names.items():
        for owned, owner in OWNED.items():
            if within(name, owned) and path != owner:
                wrong.append(f"{path} uses {name}: only {owner} may")
        if parts[0] == "c2ser_jax" and any(within(name, banned) for banned in BANNED):
            wrong.append(f"{path} uses {name}: banned")
        if within(name, "tensorflow") or within(name, "tensorflow_datasets"):
            if top:
                wrong.append(f"{path} imports {name} at module level: only lazily")
        if part == "data" and within(name, "jax"):
            wrong.append(f"{path} uses {name}: data workers do without jax")
        if part in ALLOWED and within(name, "c2ser_jax"):
            own = f"c2ser_jax.{part}"
            allowed = (own, *FREE, *ALLOWED[part], *DOORS.get(path, ()))
            if not any(within(name, one) for one in allowed):
                wrong.append(f"{path} imports {name}: {part} may import {ALLOWED[part] or 'none'}")
    return wrong


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def source_files() -> list[Path]:
    return sorted(p for top in ("c2ser_jax", "conversions") for p in (ROOT / top).rglob("*.py"))


def test_every_import_keeps_its_direction():
    wrong = []
    for path in source_files():
        wrong += complaints(path.relative_to(ROOT).as_posix(), path.read_text())
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_rule():
    packages = {p.parent.name for p in (ROOT / "c2ser_jax").glob("*/__init__.py")}
    assert packages <= ALLOWED.keys() | {"extraction", "answering"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("c2ser_jax/models/x.py", "from c2ser_jax.parallel import mesh"),
        ("c2ser_jax/models/x.py", "from ..objectives import contrastive"),
        ("c2ser_jax/data/x.py", "def f():\n    import jax.numpy as jnp"),
        ("c2ser_jax/tasks/x.py", "from c2ser_jax.data import audio"),
        ("c2ser_jax/tasks/x.py", "import c2ser_jax.training.loop"),
        ("c2ser_jax/training/x.py", "from orbax.checkpoint import v1"),
        ("c2ser_jax/training/x.py", "import jax\nmesh = jax.make_mesh((1,), ('x',))"),
        ("c2ser_jax/inference.py", "def f():\n    import torch"),
        ("c2ser_jax/inference.py", "from conversions import engine"),
        ("c2ser_jax/data/sources.py", "import tensorflow as tf"),
        ("c2ser_jax/evaluation/x.py", "from c2ser_jax.training import state"),
        ("conversions/x.py", "from c2ser_jax.training import loop"),
        ("conversions/x.py", "from c2ser_jax.training.model_directory import write_model"),
    ],
)
def test_a_wrong_import_is_noticed(path, source):
    assert complaints(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("c2ser_jax/tasks/x.py", "from c2ser_jax.data.labels import map_labels"),
        ("c2ser_jax/training/checkpoint.py", "def f():\n    from orbax.checkpoint import v1"),
        ("c2ser_jax/data/sources.py", "def f():\n    import tensorflow_datasets as tfds"),
        ("conversions/x.py", "from c2ser_jax.training.checkpoint import write_model"),
        ("c2ser_jax/inference.py", "from c2ser_jax.data import audio\nimport jax"),
        ("c2ser_jax/models/x.py", textwrap.dedent("from . import layers\nfrom .layers import a")),
    ],
)
def test_a_right_import_passes(path, source):
    assert not complaints(path, source)
