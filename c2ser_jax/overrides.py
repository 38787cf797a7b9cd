"""Typed command-line overrides of a frozen dataclass: `--a.b value`, checked before a run."""

import contextlib
import dataclasses
import difflib
import io
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from c2ser_jax.errors import UserError

Config = TypeVar("Config")

_STYLE = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)


def apply_overrides(config: Config, arguments: Sequence[str]) -> Config:
    """Returns `config` with every `--path value` of `arguments` applied.

    Paths are the dotted field names; values are parsed by the fields' types (tyro). `--help` lists
    all fields with their values and exits 0.

    Raises:
      UserError: a path that no field has (the nearest is named), or a value of the wrong type.
    """
    arguments = [_with_underscores(argument) for argument in arguments]
    if any(argument in ("-h", "--help") for argument in arguments):
        tyro.cli(type(config), default=config, args=["--help"], config=_STYLE, use_underscores=True)
    overrides = _split(arguments)
    known = field_paths(config)
    for path, _ in overrides:
        if path not in known:
            raise UserError(_unknown(path, known))
    parsed, sentence = _parse(config, arguments)
    if parsed is not None:
        return parsed
    for path, values in overrides:
        alone, sentence = _parse(config, [f"--{path}", *values])
        if alone is None:
            raise UserError(
                f"--{path} {' '.join(values)}: {sentence}; the value now is {known[path]!r}"
            )
    raise UserError(f"the overrides {' '.join(arguments)} do not parse: {sentence}")


def field_paths(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted path of a nested dataclass with its present value: {"a.b": 3, …}."""
    paths: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            paths.update(field_paths(value, f"{path}."))
        elif _is_tuple_of_dataclasses(value):
            for index, item in enumerate(value):
                paths.update(field_paths(item, f"{path}.{index}."))
        else:
            paths[path] = value
    return paths


def to_json(config: Any) -> Any:
    """The dataclass as plain dicts, lists and scalars, for config.json."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (tuple, list)):
        return [to_json(item) for item in config]
    if isinstance(config, dict):
        return {str(key): to_json(value) for key, value in config.items()}
    return config


def _parse(config: Config, arguments: Sequence[str]) -> tuple[Config | None, str]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed = tyro.cli(
                type(config), default=config, args=arguments, config=_STYLE, use_underscores=True
            )
    except SystemExit:
        return None, _first_sentence(printed.getvalue())
    except ValueError as error:
        return None, str(error)
    return parsed, ""


def _first_sentence(box: str) -> str:
    """The message inside tyro's drawn box, on one line."""
    lines = [line.strip("│╭╰╮╯─ ") for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if not line:
            break
        message.append(line)
    return " ".join(message) or "the value does not parse"


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _split(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    overrides: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            overrides.append((name, [value] if equals else []))
        elif overrides:
            overrides[-1][1].append(argument)
        else:
            raise UserError(f"{argument!r} is not an option; overrides look like --data.root DIR")
    return overrides


def _unknown(path: str, known: dict[str, Any]) -> str:
    last = path.rsplit(".", 1)[-1]
    same_name = [p for p in known if p.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(path, same_name or known, n=1, cutoff=0.0)
    best = near[0] if near else ""
    return f"this run has no setting {path!r}; the nearest is --{best} (--help lists all)"


def _is_tuple_of_dataclasses(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])
