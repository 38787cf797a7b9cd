"""Frame features of many utterances in memory, and the two layouts they are read from.

Shapes: N utterances, T frames of one utterance, F feature width. Layouts: a folder that
`c2ser_jax.extract` wrote (`<id>.npy` with index.jsonl), and the stacked files of emotion2vec's
IEMOCAP recipe (PREFIX.npy, PREFIX.lengths, PREFIX.emo).
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.data.files import TEXT
from c2ser_jax.errors import UserError, some_of


@dataclass(frozen=True)
class FeatureTable:
    """Features of N utterances: utterance i is `frames[starts[i] : starts[i] + lengths[i]]`."""

    ids: tuple[str, ...]
    frames: np.ndarray
    """float32[total, F]; may hold frames that belong to no utterance"""
    starts: np.ndarray
    """int64[N]"""
    lengths: np.ndarray
    """int64[N], each at least 1"""
    rows: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """Row number of each id."""

    def __post_init__(self):
        rows = {utterance_id: row for row, utterance_id in enumerate(self.ids)}
        if len(rows) != len(self.ids):
            repeated = next(name for row, name in enumerate(self.ids) if rows[name] != row)
            raise UserError(f"the features name {repeated!r} twice; ids must differ")
        object.__setattr__(self, "rows", rows)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """F."""
        return self.frames.shape[1]

    def utterance(self, row: int) -> np.ndarray:
        """Features float32[T, F] of one row (a view)."""
        return self.frames[self.starts[row] : self.starts[row] + self.lengths[row]]

    def take(self, rows: Iterable[int]) -> "FeatureTable":
        """The given rows, their frames copied end to end."""
        rows = [int(row) for row in rows]
        return stack_features((self.ids[row], self.utterance(row)) for row in rows)

    def check_finite(self) -> None:
        """Raises `UserError` naming the utterances that hold NaN or infinite features."""
        bad = [
            name for name, row in self.rows.items() if not np.isfinite(self.utterance(row)).all()
        ]
        if bad:
            raise UserError(
                f"{len(bad)} of {len(self)} utterances have features that are NaN or infinite "
                f"({some_of(bad)}); extract them again or leave them out"
            )


def stack_features(
    features: Mapping[str, Any] | Iterable[tuple[str, Any]],
) -> FeatureTable:
    """Lays (id, float[T, F]) pairs end to end; a vector float[F] counts as one frame.

    Raises:
        UserError: nothing given, an id twice, no frames, other shapes or differing widths.
    """
    given = features.items() if isinstance(features, Mapping) else features
    pairs = list(given) if isinstance(given, Iterable) else [given]
    if any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise UserError("features are (id, array) pairs, or a mapping of ids to arrays")
    arrays = [(str(name), np.asarray(values)) for name, values in pairs]
    return _stack([(name, array.shape, lambda array=array: array) for name, array in arrays])


def _stack(parts: Sequence[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]) -> FeatureTable:
    """Lays (id, shape, function that gives the array) end to end, one array in use at a time."""
    if not parts:
        raise UserError("there are no features: give at least one utterance")
    shapes = []
    for name, shape, _ in parts:
        shape = (1,) * (2 - len(shape)) + shape
        if len(shape) != 2 or not all(shape):
            raise UserError(f"features of {name!r} have the shape {shape}, not (frames, F)")
        if shapes and shape[1] != shapes[0][1]:
            raise UserError(
                f"features of {name!r} are {shape[1]} wide but those of {parts[0][0]!r} "
                f"{shapes[0][1]}; use features of one model only"
            )
        shapes.append(shape)
    lengths = np.array([length for length, _ in shapes], np.int64)
    frames = np.empty((lengths.sum(), shapes[0][1]), np.float32)
    starts = np.cumsum(lengths) - lengths
    for start, length, (_, _, read) in zip(starts, lengths, parts, strict=True):
        frames[start : start + length] = read()
    return FeatureTable(tuple(name for name, _, _ in parts), frames, starts, lengths)


def read_feature_folder(directory: Path | str, ids: Collection[str] | None = None) -> FeatureTable:
    """Reads a folder that extract wrote; with `ids`, only those of them that the index lists.

    The headers are read first, then one file after another straight into one array, so memory
    holds them once and a single file is open at a time.

    Raises:
        UserError: no index, a damaged row, or a file that is missing or no float array.
    """
    directory = Path(directory)
    wanted = None if ids is None else set(ids)
    index = directory / "index.jsonl"
    if not index.is_file():
        raise UserError(f"{index} does not exist; give a folder written by c2ser_jax.extract")
    parts = []
    for number, line in enumerate(index.read_text(**TEXT).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["id"]
            file = row.get("file", f"{name}.npy")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{index}, line {number} is not a row with an id; mend it") from None
        if wanted is None or name in wanted:
            read = partial(_open_array, directory, file, name)
            parts.append((str(name), read().shape, read))
    if not parts:
        raise UserError(f"{index} lists none of the utterances wanted; extract them first")
    return _stack(parts)


def _open_array(directory: Path, file: str, name: str) -> np.ndarray:
    """A map of the file, open for as long as the array is referred to."""
    if Path(file).name != file:
        raise UserError(f"{directory}/index.jsonl names the file {file!r} outside its folder")
    path = directory / file
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"features of {name!r} can't be read from {path} ({error}); extract them again"
        ) from None
    if array.dtype.kind != "f":
        raise UserError(f"{path} holds {array.dtype} values, not floating-point features")
    return array


def read_stacked(
    prefix: Path | str,
    *,
    min_frames: int | None = None,
    max_frames: int | None = None,
) -> tuple[FeatureTable, list[str]]:
    """Reads PREFIX.npy, .lengths and .emo (ddlBoJack/emotion2vec, iemocap_downstream/data.py).

    `.npy` holds all frames float[total, F] end to end, `.lengths` one frame count per line, `.emo`
    `name<TAB>label` per line. Utterances outside [min_frames, max_frames] are left out together
    with their label (upstream drops them from the features alone in its folds, which shifts the
    labels). Returns the table and the labels, both in file order.

    Raises:
        UserError: a file is missing or the three don't fit together.
    """
    paths = {suffix: Path(f"{prefix}.{suffix}") for suffix in ("npy", "lengths", "emo")}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path} does not exist; {prefix} needs .npy, .lengths and .emo")
    frames = np.asarray(_open_array(paths["npy"].parent, paths["npy"].name, str(prefix)))
    try:
        lengths = np.array([int(line) for line in paths["lengths"].read_text("utf-8").split()])
    except ValueError as error:
        raise UserError(
            f"{paths['lengths']} must hold one whole number per line: {error}"
        ) from None
    rows = [line.split("\t") for line in paths["emo"].read_text("utf-8").splitlines() if line]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"{paths['emo']} must hold `name<TAB>label` on every line")
    if len(rows) != len(lengths):
        raise UserError(f"{prefix}: {len(lengths)} lengths but {len(rows)} labels")
    if frames.ndim != 2 or lengths.sum() != len(frames) or (lengths < 1).any():
        raise UserError(
            f"{prefix}: the lengths add up to {lengths.sum()} frames of at least 1 each, but the "
            f"array has the shape {frames.shape}"
        )
    starts = np.cumsum(lengths) - lengths
    kept = (lengths >= (min_frames or 1)) & (lengths <= (max_frames or lengths.max()))
    table = FeatureTable(
        tuple(row[0] for row, keep in zip(rows, kept, strict=True) if keep),
        frames.astype(np.float32, copy=False),
        starts[kept],
        lengths[kept],
    )
    return table, [row[1] for row, keep in zip(rows, kept, strict=True) if keep]
