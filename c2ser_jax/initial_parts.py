"""What the whole model's parts start from: earlier stages, converted models, or nothing."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from c2ser_jax.config import RunConfig
from c2ser_jax.data.tokenizer import check_tokenizer, load_tokenizer
from c2ser_jax.errors import UserError, shortened
from c2ser_jax.overrides import to_json
from c2ser_jax.training.checkpoint import read_description, read_params
from c2ser_jax.training.model_directory import TOKENIZER, ends_of

C2SER = "c2ser"
"""Kind of a model directory with the whole model."""

KINDS = {"encoder": "whisper_encoder", "llm": "qwen2"}
"""Kinds of the model directories that `initial_encoder` and `initial_llm` name."""

FREE = frozenset(
    "dtype param_dtype remat attention_implementation scan_layers dropout attention_dropout "
    "mlp_dropout prenet_dropout layer_drop prenet_layer_drop position_dropout activation_dropout "
    "input_dropout alibi_initial_scale max_positions inputs targets".split()
)
"""Fields that a run may set otherwise than the model that it starts from.

More `targets` get new adapters; with fewer, the leaves that are left over are refused.
"""

Params = Mapping[str, Any]
Route = tuple[str, ...]


def initial_directories(run: RunConfig) -> list[str]:
    """The model directories that the run starts from."""
    return [one for one in (run.initial, run.initial_encoder, run.initial_llm) if one]


def acoustic_encoder(
    directory: str, wanted: Mapping[str, Any], say: Callable[[str], None] = print
) -> Params:
    """The acoustic encoder of a whole model or of an Emotion2Vec, for a run that has `wanted`.

    `say` gets a line where the run feeds another waveform to an Emotion2Vec, normalised or as it
    is.

    Raises:
      UserError: a directory that holds neither, or one made with another config of the encoder.
    """
    description = read_description(directory)
    kind, stored, whose = description.kind, description.model, f"initial {directory}"
    if kind == C2SER:
        params = read_params(directory)
        if "acoustic" not in stored or "acoustic" not in params:
            raise UserError(
                f"{whose} lacks its acoustic encoder, which this run starts from: convert or train "
                "it again"
            )
        _check_model(whose, stored, {"acoustic": wanted})
        return params["acoustic"]
    if not kind.startswith("emotion2vec"):
        raise UserError(
            f"{whose} holds a model of kind {kind}, wanted is an emotion2vec or a {C2SER}; "
            "initial_encoder and initial_llm name those of other kinds"
        )
    name = "normalize_waveform"
    _check_model(whose, {k: v for k, v in stored.items() if k != name}, wanted, "acoustic")
    if stored.get(name, wanted[name]) != wanted[name]:
        say(f"{whose} was made with {name} {stored[name]}, this run has {wanted[name]}")
    return read_params(directory)["encoder"]


def check_initial_parts(run: RunConfig) -> None:
    """Looks at all that the whole model starts from, reading configs and the tokenizer alone.

    The acoustic encoder of another `initial` than a whole model is left to `acoustic_encoder`.

    Raises:
      UserError: a directory of another kind, one made with another model than the run configures,
        or a tokenizer that doesn't belong to the language model.
    """
    assert run.c2ser is not None
    wanted = to_json(run.c2ser.model(run.encoder))
    if run.initial:
        description = read_description(run.initial)
        if description.kind == C2SER:
            _check_model(f"initial {run.initial}", description.model, wanted)
    for part, kind in KINDS.items():
        directory = getattr(run, f"initial_{part}")
        if not directory:
            continue
        description = read_description(directory)
        if description.kind != kind:
            raise UserError(
                f"initial_{part} {directory} holds a model of kind {description.kind}, wanted is "
                f"{kind}: convert one with python -m conversions"
            )
        _check_model(f"initial_{part} {directory}", description.model, wanted[part], part)
    folder = tokenizer_directory(run)
    if folder is not None:
        check_tokenizer(load_tokenizer(folder), run.c2ser.llm.vocabulary, initial_ends(run))


def initial_parts(run: RunConfig) -> dict[str, Params]:
    """{part: parameters} of the model directories that fill parts of the whole model.

    `check_initial_parts` says whether they fit. The acoustic encoder of another `initial` than a
    whole model is not among them.
    """
    parts: dict[str, Params] = {}
    if run.initial and read_description(run.initial).kind == C2SER:
        parts |= read_params(run.initial)
    for part in KINDS:
        if directory := getattr(run, f"initial_{part}"):
            params = read_params(directory)
            parts[part] = params["encoder"] if part == "encoder" else params
    return parts


def tokenizer_directory(run: RunConfig) -> Path | None:
    """The folder whose tokenizer the run takes, None when it must train one."""
    if run.tokenizer:
        inside = Path(run.tokenizer) / TOKENIZER
        return inside if inside.is_dir() else Path(run.tokenizer)
    if run.initial_llm:
        return Path(run.initial_llm) / TOKENIZER
    if run.initial and read_description(run.initial).kind == C2SER:
        return Path(run.initial) / TOKENIZER
    return None


def initial_ends(run: RunConfig) -> list[int] | None:
    """The ids that end a text for the language model that the run starts from, where it tells."""
    if not run.initial or run.initial_llm:
        return None
    description = read_description(run.initial)
    return ends_of(description) if description.kind == C2SER else None


def _check_model(
    whose: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], part: str = ""
) -> None:
    """Raises `UserError` when two configs of a model differ in more than `FREE` fields.

    They are the whole model's, or those of the `part` named. All differences are told at once, with
    the settings that mend them.
    """
    root = (part,) if part else ()
    found = list(_differences(whose, stored, wanted, root))
    if not found:
        return
    (path, one, other), *more = found
    owner = ": ".join([whose, *path[len(root) : -1]])
    told = f"{owner} was made with {path[-1]} {_short(one)}, this run has {_short(other)}"
    for path, one, other in more[:3]:
        told += f"; {'.'.join(path[len(root) :])} {_short(one)}, here {_short(other)}"
    if len(more) > 3:
        told += f" and {len(more) - 3} more"
    mending = [  # quoted, since the values are a stranger's; a table belongs into the config file
        f"--{_setting(path)} {shlex.quote(str(one))}"
        for path, one, _ in found
        if isinstance(one, str | int | float) and str(one) == _short(one)
    ]
    own = "the model's own values" if more else "the model's own value"
    raise UserError(f"{told}: give {', '.join([own, ' '.join(mending)] if mending else [own])}")


def _differences(
    whose: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], path: Route
) -> Iterator[tuple[Route, Any, Any]]:
    """(path, stored value, wanted value) of the fields that differ beside `FREE` ones.

    A run may give new adapters to a model that has none.
    """
    for name in sorted(stored.keys() & wanted.keys() - FREE):
        one, other, here = stored[name], wanted[name], (*path, name)
        if name == "lora" and one is None:
            continue
        if isinstance(other, Mapping):
            if not isinstance(one, Mapping):
                raise UserError(
                    f"{whose} has {'.'.join(here)} {one!r:.80} in its config.json, which must be a "
                    "table; write or convert the model again"
                )
            yield from _differences(whose, one, other, here)
        elif _tables(one) and _tables(other) and len(one) == len(other):
            for place, (a, b) in enumerate(zip(one, other, strict=True)):
                yield from _differences(whose, a, b, (*here, str(place)))
        elif one != other:
            yield here, one, other


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _setting(path: Route) -> str:
    """What the run's config calls a field of the whole model's."""
    first = {"acoustic": "encoder"}.get(path[0], f"c2ser.{path[0]}")
    return ".".join([first, *path[1:]])


def _short(value: Any) -> str:
    return shortened(value if isinstance(value, str) and value.isprintable() else repr(value))
