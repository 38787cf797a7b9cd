"""Model directories: a trained or converted model that explains itself, read with numpy alone.

DIR/config.json         kind, model config, labels, licence, origin, versions
DIR/params.safetensors  parameters, named by path: "encoder/blocks/attn/qkv/kernel"
DIR/carried.safetensors what a conversion carries along for export (optional)
DIR/trained_on.jsonl    one {"id", "audio_sha256"} per training utterance (optional)
DIR/tokenizer/          a language model's tokenizer files, as they were (optional)

A directory appears whole or not at all: it is written beside its place, brought to the disk, and
renamed. While a model is exchanged, the older one lies beside it as ".NAME.replaced-PID"; when the
writer dies in that moment, the next reader or writer puts it back.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.training.safetensors import Leaf, read_safetensors, write_safetensors

FORMAT = "c2ser_jax model"
FORMAT_VERSION = 1
TOKENIZER = "tokenizer"
_MAX_CONFIG_BYTES = 16_000_000
_CONFIG, _PARAMS, _CARRIED = "config.json", "params.safetensors", "carried.safetensors"
_TRAINED_ON = "trained_on.jsonl"


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a model directory holds, beside the numbers."""

    # "emotion2vec" | "emotion2vec_classifier" | "emotion2vec_pretraining" | "whisper_encoder" |
    # "qwen2" | "c2ser"
    kind: str
    model: dict[str, Any]  # the model config as a dictionary
    labels: list[str] | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    licence: str | None = None


def write_model(
    directory: str | Path,
    description: ModelDescription,
    leaves: Iterable[Leaf],
    *,
    carried: Iterable[Leaf] | None = None,
    trained_on: Iterable[Mapping[str, Any]] | None = None,
    tokenizer: Mapping[str, bytes] | None = None,
    replace: bool = False,
) -> None:
    """Writes a model directory whole, with one leaf in memory at a time, or leaves nothing behind.

    An existing model is only exchanged with `replace=True`; whatever else lies at `directory` is
    never touched. What writers that died have left beside it is removed. Errors: UserError when the
    place is taken or cannot be written.
    """
    target = Path(directory)
    _put_back(target)
    _refuse_taken(target, replace)
    missing = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    temporary = target.parent / f".{target.name}.writing-{os.getpid()}"
    try:
        for left in _left_behind(target, "writing"):
            shutil.rmtree(left)
        for left in _left_behind(target, "replaced") if target.exists() else ():
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "written_with": _versions(),
            **dataclasses.asdict(description),
        }
        _write_lines(temporary / _CONFIG, [json.dumps(document, indent=1, ensure_ascii=False)])
        write_safetensors(temporary / _PARAMS, leaves)
        if carried is not None:
            write_safetensors(temporary / _CARRIED, carried)
        if trained_on is not None:
            rows = (json.dumps(dict(row), ensure_ascii=False) for row in trained_on)
            _write_lines(temporary / _TRAINED_ON, rows)
        if tokenizer:
            (temporary / TOKENIZER).mkdir()
            for name, data in tokenizer.items():
                (temporary / TOKENIZER / name).write_bytes(data)
        _exchange(temporary, target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"cannot write the model {target}: {error.strerror}") from error
        raise


def title_of(directory: str | Path) -> str:
    """What a reader calls a model: its directory's name, of a trained one "run/stage"."""
    path = Path(directory).resolve()
    return "/".join(path.parts[-3:-1]) if path.name == "model" else path.name


def read_description(directory: str | Path) -> ModelDescription:
    """Returns the description in DIR/config.json, which is untrusted. Errors: UserError."""
    _put_back(Path(directory))
    path = Path(directory) / _CONFIG
    if not path.is_file():
        raise UserError(
            f"{directory} is no model directory (it has no {_CONFIG}): give a directory "
            "written by training or by python -m conversions"
        )
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise UserError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes: it is no model config")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error}): write the model again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        models = ", ".join(map(str, sorted(Path(directory).glob("*/model"))))
        advice = f"give a model in it: {models}" if models else "write or convert the model again"
        raise UserError(f"{path} does not describe a {FORMAT}: {advice}")
    if document.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {document.get('format_version')!r}, this library reads "
            f"{FORMAT_VERSION}: update the library or convert the model again"
        )
    return _description(path, document)


@contextlib.contextmanager
def reading_config(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Makes one sentence of whatever a directory's model config raises as it becomes a dataclass.

    Raises:
      UserError: a name that is no field, or a value that means nothing or has the wrong type.
    """
    path = Path(directory) / _CONFIG
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: the model config has a value of the wrong type ({error}); write or convert "
            "the model again"
        ) from None


def temperature_of(description: ModelDescription) -> float:
    """What a model's scores are divided by before they become probabilities.

    Raises:
      UserError: the description holds something that is no positive number.
    """
    value = description.extra.get("temperature", 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(
            f"the model's config.json has temperature {value!r}; it must be a positive number"
        )
    return float(value)


def ends_of(description: ModelDescription) -> list[int] | None:
    """The ids that end a text for a model's weights; None where its directory doesn't tell.

    Raises:
      UserError: the description holds something that is no list of ids.
    """
    value = description.extra.get("eos")
    if value is not None and not (isinstance(value, list) and all(type(i) is int for i in value)):
        raise UserError(
            f"the model's config.json has eos {value!r:.80}; it must be a list of token ids"
        )
    return value


def write_extra(directory: str | Path, **changes: Any) -> None:
    """Changes entries of `extra` in DIR/config.json, exchanged whole. Errors: UserError."""
    read_description(directory)
    path = Path(directory) / _CONFIG
    document = json.loads(path.read_text(encoding="utf-8"))
    document["extra"] = {**document["extra"], **changes}
    part = path.with_name(f".{_CONFIG}.part")
    try:
        _write_lines(part, [json.dumps(document, indent=1, ensure_ascii=False)])
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    _sync_folder(path.parent)


def read_params(directory: str | Path) -> dict[str, Any]:
    """Returns the parameters as nested dicts of read-only arrays mapped from the disk."""
    return nest(read_safetensors(Path(directory) / _PARAMS))


def read_carried(directory: str | Path) -> dict[str, np.ndarray]:
    """Returns what the conversion carried along, {source name: array}; empty when nothing was."""
    path = Path(directory) / _CARRIED
    return read_safetensors(path) if path.exists() else {}


def read_trained_on(directory: str | Path) -> list[dict[str, Any]] | None:
    """Returns one {"id", "audio_sha256"} per training utterance, None when no list was kept."""
    path = Path(directory) / _TRAINED_ON
    if not path.exists():
        return None
    rows = []
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is no JSON: write the model again") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is no table: write the model again")
        rows.append(row)
    return rows


def check_shapes(
    params: Mapping[str, Any],
    wanted: Mapping[str, tuple[int, ...]],
    directory: str | os.PathLike[str],
    *,
    under: tuple[str, ...] = ("",),
) -> None:
    """Compares the parameters read from a directory with the `wanted` shapes by path.

    under: beginnings of the paths under which nothing else may be.

    Raises:
      UserError: a parameter is missing, has another shape, or is not called for.
    """
    found = {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}
    for name, shape in wanted.items():
        if found.get(name) != shape:
            has = "is missing" if name not in found else f"has shape {list(found[name])}"
            raise UserError(
                f"{directory}: the parameter {name} {has}, the config asks for {list(shape)}; "
                "write or convert the model again"
            )
    if extra := sorted(n for n in found if n.startswith(under) and n not in wanted):
        raise UserError(
            f"{directory}: the config does not call for the parameter {extra[0]}; "
            "write or convert the model again"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a/b/c": leaf} for nested dicts, in the dicts' own order."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, path + "/"))
        else:
            flat[path] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts for {"a/b/c": leaf}. Errors: UserError if a name is leaf and branch."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UserError(f"the name {path!r} continues another leaf's name")
        if last in node:
            raise UserError(f"the name {path!r} is a leaf and a branch, or comes twice")
        node[last] = leaf
    return tree


def leaves_of(params: Mapping[str, Any]) -> list[Leaf]:
    """Returns `params` (nested dicts of numpy or jax arrays) in the form `write_model` takes."""

    def maker(value: Any) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(value)

    return [(n, tuple(v.shape), np.dtype(v.dtype), maker(v)) for n, v in flatten(params).items()]


def _refuse_taken(target: Path, replace: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / _CONFIG).exists() or not (target / _PARAMS).exists():
        raise UserError(f"{target} exists and is no model directory: give another place")
    if not replace:
        raise UserError(f"{target} already holds a model: give another place or remove it first")


def _exchange(temporary: Path, target: Path) -> None:
    """Puts `temporary` in the place of `target`; an older model is set aside until that is done."""
    aside = target.parent / f".{target.name}.replaced-{os.getpid()}"
    _sync_folder(temporary)
    if target.exists():
        target.rename(aside)
    temporary.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(target: Path) -> None:
    """Restores the model that a writer had set aside when it died, if there is no other."""
    if target.exists():
        return
    for aside in _left_behind(target, "replaced"):
        with contextlib.suppress(OSError):  # another reader may be faster, or the disk read-only
            aside.rename(target)
            return


def _left_behind(target: Path, state: str) -> list[Path]:
    """Siblings ".NAME.STATE-PID" of writers that are gone, the newest first."""
    prefix = f".{target.name}.{state}-"
    try:
        found = [path for path in target.parent.iterdir() if path.name.startswith(prefix)]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [path for path in found if not _is_running(path.name.removeprefix(prefix))]


def _is_running(pid: str) -> bool:
    """Whether another process has this number, as far as this machine can tell."""
    if pid == str(os.getpid()):
        return False  # left by a process that had the same number
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, ValueError):
        pass
    return True


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes UTF-8 text to the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("c2ser_jax", "jax", "flax", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _description(path: Path, document: dict[str, Any]) -> ModelDescription:
    fields = {f.name: document.get(f.name) for f in dataclasses.fields(ModelDescription)}
    for name in ("model", "extra", "origin"):
        if not isinstance(fields[name], dict):
            raise UserError(f"{path}: {name!r} must be a table, it is {fields[name]!r:.80}")
    if not isinstance(fields["kind"], str) or not re.fullmatch(r"[a-z0-9_]{1,64}", fields["kind"]):
        raise UserError(f"{path}: 'kind' must be a model kind, it is {fields['kind']!r:.80}")
    labels = fields["labels"]
    is_names = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if labels is not None and not is_names:
        raise UserError(f"{path}: 'labels' must be a list of names, it is {labels!r:.80}")
    if fields["licence"] is not None and not isinstance(fields["licence"], str):
        raise UserError(f"{path}: 'licence' must be a text, it is {fields['licence']!r:.80}")
    return ModelDescription(**fields)  # type: ignore[arg-type]
