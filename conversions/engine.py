"""Applies a family's table of rules: which source tensor fills which part of which parameter.

A rule's `view` shows (part of) a parameter in the source's layout. Importing writes the source
through that view, exporting reads it back, so one table serves both ways and is exact.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from c2ser_jax.errors import UserError, some_of
from conversions.tensors import LazyTensor

View = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def same(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter as it is."""
    return part


def linear(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """kernel [in, out] as torch's Linear weight [out, in]."""
    return part.T


def convolution(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """kernel [K, in, out] as torch's Conv1d weight [out, in, K]."""
    return part.T


def unit_axes(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The parameter with the source's axes of length one, such as [1, H] as [1, 1, H, 1, 1]."""
    fits = [n for n in shape if n != 1] == [n for n in part.shape if n != 1]
    return part.reshape(shape) if fits else part


@dataclass(frozen=True)
class Rule:
    """`source` → `target`; `{i}` is a number in both, `{next}` is i + 1, `{layer}` is stacked.

    A source with `{layer}` fills row `layer` of a target whose first axis is the layers.
    """

    source: str
    target: str
    view: View = same
    source_shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None  # of unit_axes


@dataclass(frozen=True)
class Match:
    """Where one source tensor goes: a parameter's path, the row of its layer axis, the view."""

    target: str
    layer: int | None
    view: View

    def within(self, leaf: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
        """The view of `leaf` with the source's `shape`; None when it doesn't fit."""
        if self.layer is not None:
            if not leaf.ndim or self.layer >= leaf.shape[0]:
                return None
            leaf = leaf[self.layer]
        part = self.view(leaf, shape)
        return part if part.shape == shape else None


class Table:
    """A family's rules, looked up by source name."""

    def __init__(self, rules: Sequence[Rule]):
        self._rules = tuple(rules)
        self._exact = {rule.source: rule for rule in rules if "{" not in rule.source}
        self._patterns = [(_pattern(rule.source), rule) for rule in rules if "{" in rule.source]

    def match(self, name: str) -> Match | None:
        """Where the source tensor `name` goes; None when no rule knows it."""
        if name in self._exact:
            rule = self._exact[name]
            return Match(rule.target, None, rule.view)
        for pattern, rule in self._patterns:
            if found := pattern.fullmatch(name):
                numbers = {key: int(value) for key, value in found.groupdict().items()}
                if "next" in numbers:
                    numbers["i"] = numbers.pop("next") - 1
                target = rule.target.format(**numbers)
                return Match(target, numbers.get("layer"), rule.view)
        return None

    def sources(
        self, path: str, shape: tuple[int, ...]
    ) -> Iterator[tuple[str, tuple[int, ...], Match]]:
        """(source name, its shape, where it lies) of all tensors that make up a parameter."""
        for rule in self._rules:
            found = _pattern(rule.target).fullmatch(path)
            if not found:
                continue
            index = int(found["i"]) if "{i}" in rule.target else 0
            is_stacked = "{layer}" in rule.source
            for layer in range(shape[0]) if is_stacked else (None,):
                name = rule.source.format(i=index, next=index + 1, layer=layer)
                part = np.broadcast_to(np.float32(0), shape[1:] if is_stacked else shape)
                exact = rule.source_shape(part.shape) if rule.source_shape else None
                wanted = exact or rule.view(part, part.shape).shape
                yield name, wanted, Match(path, layer, rule.view)
            return


def _pattern(source: str) -> re.Pattern[str]:
    escaped = re.escape(source)
    return re.compile(
        re.sub(r"\\\{(i|next|layer)\\\}", r"(?P<\1>0|[1-9][0-9]{0,3})", escaped), re.ASCII
    )


@dataclass
class Plan:
    """Which tensors fill which parameter, checked: `leaves()` can be written as it stands."""

    shapes: Shapes
    parts: dict[str, list[tuple[Match, str, LazyTensor]]] = field(default_factory=dict)
    keeps_half: Callable[[str], bool] = lambda path: False

    def dtype(self, path: str) -> np.dtype:
        """bfloat16 where `keeps_half(path)` and all of its tensors are bfloat16; else float32."""
        stored = {tensor.dtype.name for _, _, tensor in self.parts[path]}
        is_half = stored == {"bfloat16"} and self.keeps_half(path)
        return np.dtype(ml_dtypes.bfloat16 if is_half else np.float32)

    def leaves(self) -> Iterator[tuple[str, tuple[int, ...], Any, Callable[[], np.ndarray]]]:
        """(name, shape, dtype, read) of every parameter; `read()` gathers it from the file.

        While one is read, it and one block of some MiB are in memory. Raises `UserError` for a
        value that is not finite, and for a float64 that no float32 equals.
        """
        for path, shape in self.shapes.items():
            yield path, shape, self.dtype(path), lambda path=path: self._gather(path)

    def _gather(self, path: str) -> np.ndarray:
        leaf = np.empty(self.shapes[path], self.dtype(path))
        for match, name, tensor in self.parts[path]:
            part = match.within(leaf, tensor.shape)
            assert part is not None  # `plan` has checked it
            for rows, block in tensor.blocks():
                if not np.isfinite(block).all():
                    raise UserError(
                        f"{tensor.extent.path}: {name} holds NaN or infinite weights; take a "
                        "checkpoint saved before the training diverged"
                    )
                with np.errstate(over="ignore"):  # what overflows is refused
                    part[rows] = block
                if block.dtype == np.float64 and not np.array_equal(part[rows], block):
                    raise UserError(
                        f"{tensor.extent.path}: {name} holds float64 weights that float32 can't "
                        "hold exactly; convert the checkpoint to float32 first (model.float())"
                    )
        return leaf


def plan(
    table: Table, tensors: Mapping[str, LazyTensor], shapes: Shapes, *, source: str, hint: str,
    keeps_half: Callable[[str], bool] = lambda path: False,
) -> Plan:  # fmt: skip
    """Assigns every tensor; raises one `UserError` with the four lists when something is left.

    Unmapped source: tensors no rule knows. Unfilled target: parameters nothing fills, or not
    wholly. Unknown target: rules that name a parameter this model lacks. Wrong shape: the rest.
    `source` names the file, `hint` says what to do. `keeps_half` says of a parameter's path whether
    it stays bfloat16 where the file has it so.
    """
    unmapped, unfilled, unknown, wrong = [], [], [], []
    made = Plan(shapes, keeps_half=keeps_half)
    taken: set[tuple[str, int | None]] = set()
    for name, tensor in tensors.items():
        match = table.match(name)
        if match is None:
            unmapped.append(name)
        elif match.target not in shapes:
            unknown.append(f"{match.target} (from {name})")
        elif (match.target, match.layer) in taken:
            unmapped.append(f"{name} (its place is taken)")
        elif trouble := _misfit(match, tensor, shapes[match.target]):
            wrong.append(f"{name} {trouble}")
        else:
            taken.add((match.target, match.layer))
            made.parts.setdefault(match.target, []).append((match, name, tensor))
    for path, shape in shapes.items():
        rows = [match.layer for match, _, _ in made.parts.get(path, [])]
        if not rows:
            unfilled.append(path)
        elif rows[0] is not None and (missing := set(range(shape[0])) - set(rows)):
            unfilled.append(f"{path} layer {min(missing)}")
    lists = {
        "unmapped source": unmapped,
        "unfilled target": unfilled,
        "unknown target": unknown,
        "wrong shape": wrong,
    }
    if any(lists.values()):
        told = "; ".join(f"{title}: {some_of(names, 4)}" for title, names in lists.items() if names)
        raise UserError(f"{source} doesn't fit the model: {told}. {hint}")
    return made


def _misfit(match: Match, tensor: LazyTensor, shape: tuple[int, ...]) -> str:
    """Why a tensor can't fill its place; empty when it can."""
    if tensor.dtype.name not in _FLOATS:
        return f"is {tensor.dtype.name}, wanted floating point"
    if match.layer is not None and (not shape or match.layer >= shape[0]):
        return f"is layer {match.layer}, but {match.target} has {(shape or (0,))[0]} layers"
    leaf = np.broadcast_to(np.float32(0), shape)
    if match.within(leaf, tensor.shape) is None:
        wanted = shape if match.layer is None else shape[1:]
        return f"is {list(tensor.shape)}, {match.target} holds {list(wanted)}"
    return ""


def elements(shapes: Shapes) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in shapes.values())
