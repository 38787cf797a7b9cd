"""Scores frozen features by folds: trains the probe in each and reports what its test set says.

Development data alone choose epoch, learning rate and width; a fold's test set is looked at once,
with the head already chosen. Shapes: N utterances, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from c2ser_jax.data.feature_files import FeatureTable, read_feature_folder, stack_features
from c2ser_jax.errors import UserError, some_of
from c2ser_jax.evaluation.metrics import classification_metrics
from c2ser_jax.evaluation.probe_result import FoldResult, ProbeResult, gather_folds
from c2ser_jax.evaluation.report import percent
from c2ser_jax.tasks.probe import GridResult, PackedFrames, pack, predict_logits, train_grid
from c2ser_jax.tasks.probe_grid import epoch_orders, frame_capacity
from c2ser_jax.tasks.probe_recipe import ProbeConfig

if TYPE_CHECKING:
    from c2ser_jax.data.manifest import Utterance
    from c2ser_jax.data.splits import Fold


def stratified_dev(
    labels: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Divides positions 0 … n-1 into (train, dev): `share` of every class, at least one of each.

    labels int[n]. A class with a single item stays in training, for a head that never saw a class
    can't name it. EmoBox meant a random 20 % and got an empty set (DOWNSTREAM: 80 for 0.8).
    """
    dev = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(share * len(members))) if len(members) > 1 else 0
        dev.append(members[:count])
    chosen = np.sort(np.concatenate(dev))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _load(features: Any, folds: Sequence["Fold"]) -> FeatureTable:
    if isinstance(features, FeatureTable):
        return features
    if isinstance(features, str | Path):
        return read_feature_folder(features, {u.id for fold in folds for u in _members(fold)})
    return stack_features(features)


def _members(fold: "Fold") -> list["Utterance"]:
    return [*fold.train, *fold.dev, *fold.test]


def _label_numbers(
    table: FeatureTable,
    folds: Sequence["Fold"],
    labels: Mapping[str, str] | None,
    classes: Sequence[str] | None,
) -> tuple[np.ndarray, list[str]]:
    """(class numbers int[N] with -1 where no fold uses the row, class names)."""
    named: dict[str, str | None] = {}
    for fold in folds:
        for utterance in _members(fold):
            named[utterance.id] = (
                labels.get(utterance.id) if labels is not None else utterance.label
            )
    missing = [name for name, label in named.items() if label is None]
    if missing:
        raise UserError(
            f"{len(missing)} utterances of the folds have no label ({some_of(missing)}); give them "
            "one or leave them out of the lists"
        )
    found = sorted({str(label) for label in named.values()})
    names = list(classes) if classes is not None else found
    unknown = [label for label in found if label not in names]
    if unknown:
        raise UserError(f"labels {some_of(unknown)} are not among the classes {', '.join(names)}")
    numbers = np.full(len(table), -1)
    for name, label in named.items():
        if name in table.rows:
            numbers[table.rows[name]] = names.index(str(label))
    return numbers, names


def _drop_missing(
    table: FeatureTable, folds: Sequence["Fold"], allow: bool
) -> tuple[list[dict[str, list["Utterance"]]], list[str]]:
    """Utterances of every fold's parts that have features, and the ids of those that have none."""
    lost = sorted({u.id for f in folds for u in _members(f) if u.id not in table.rows})
    if lost and not allow:
        raise UserError(
            f"{len(lost)} utterances of the folds have no features ({some_of(lost)}); a score "
            "without them is not comparable: extract them, or allow it explicitly"
        )
    parts = [
        {k: [u for u in getattr(f, k) if u.id in table.rows] for k in ("train", "dev", "test")}
        for f in folds
    ]
    for fold, part in zip(folds, parts, strict=True):
        overlap = {u.id for u in part["test"]} & {u.id for u in [*part["train"], *part["dev"]]}
        if overlap:
            raise UserError(
                f"fold {fold.name}: {len(overlap)} test utterances are in its training data too "
                f"({some_of(sorted(overlap))})"
            )
        if not part["train"] or not part["test"]:
            empty = "test" if part["train"] else "training"
            raise UserError(f"fold {fold.name} has no {empty} utterances; check its lists")
    return parts, lost


def run_probe(
    features: FeatureTable | Mapping[str, np.ndarray] | Path | str,
    folds: Sequence["Fold"],
    cfg: ProbeConfig,
    *,
    labels: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    allow_missing: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Trains and scores the probe in every fold.

    Args:
        features: a table, {id: float[T, F]}, or a folder written by `c2ser_jax.extract`.
        folds: objects with `name` and the lists `train`, `dev`, `test` of utterances (`id`,
            `label`, `speaker`). An empty `dev` is replaced by a stratified part of train.
        cfg: the recipe; `seed` decides start parameters, shuffles and that part.
        labels: {id: class name} instead of the utterances' own labels.
        classes: class names in order; default the labels that occur, sorted.
        allow_missing: score without utterances that have no features instead of refusing; the
            result's warnings list them.
        progress: called with one line of text after every fold.

    Raises:
        UserError: no folds, labels or features missing, features not finite, or a fold whose test
            utterances are in its training data.
    """
    if not folds:
        raise UserError("there is no fold to run the probe on")
    table = _load(features, folds)
    table.check_finite()
    parts, lost = _drop_missing(table, folds, allow_missing)
    numbers, names = _label_numbers(table, folds, labels, classes)
    plans = []
    for index, part in enumerate(parts):
        rows = {k: np.array([table.rows[u.id] for u in v], int) for k, v in part.items()}
        if not len(rows["dev"]):
            rng = np.random.default_rng([seed, index])
            kept, dev = stratified_dev(numbers[rows["train"]], cfg.dev_share, rng)
            rows = {**rows, "train": rows["train"][kept], "dev": rows["train"][dev]}
        plans.append(rows)
    capacity = max(
        frame_capacity(epoch_orders(rows["train"], cfg, seed), table.lengths) for rows in plans
    )
    packed = pack(table.frames, table.starts, table.lengths)
    results = []
    for fold, part, rows in zip(folds, parts, plans, strict=True):
        grid = train_grid(
            packed,
            numbers,
            train=rows["train"],
            dev=rows["dev"],
            classes=len(names),
            cfg=cfg,
            seed=seed,
            capacity=capacity,
        )
        results.append(_score_fold(fold.name, part, rows, grid, packed, numbers, names))
        if progress:
            scores, chosen = results[-1].metrics, results[-1].chosen
            progress(
                f"{fold.name}: UA {percent(scores['ua'])}, WA {percent(scores['wa'])} on "
                f"{scores['num']} test items (development {percent(chosen['dev_score'])})"
            )
    return gather_folds(results, names, lost, {**asdict(cfg), "seed": seed})


def _score_fold(
    name: str,
    part: dict[str, list["Utterance"]],
    rows: dict[str, np.ndarray],
    grid: GridResult,
    packed: PackedFrames,
    numbers: np.ndarray,
    names: list[str],
) -> FoldResult:
    logits = predict_logits(grid.params, packed, rows["test"]).astype(np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = odds / odds.sum(-1, keepdims=True)
    guesses = logits.argmax(-1)
    points = [
        {
            "learning_rate": rate,
            "hidden": hidden,
            "epoch": int(epoch),
            "dev_score": float(scores[epoch - 1]) if epoch else None,
        }
        for (rate, hidden), epoch, scores in zip(
            grid.points, grid.best_epochs, grid.dev_scores, strict=True
        )
    ]
    seen = {u.speaker for u in [*part["train"], *part["dev"]]}
    speakers = {u.speaker for u in part["test"]} - {None}
    return FoldResult(
        name=name,
        sizes={k: len(v) for k, v in rows.items()},
        chosen=points[grid.chosen],
        grid=points,
        metrics=classification_metrics(numbers[rows["test"]], guesses, names),
        rows=[
            {
                "id": u.id,
                "fold": name,
                "label": names[numbers[row]],
                "predicted": names[guess],
                "probabilities": {c: round(float(p), 6) for c, p in zip(names, odd, strict=True)},
                "speaker": u.speaker,
            }
            for u, row, guess, odd in zip(
                part["test"], rows["test"], guesses, probabilities, strict=True
            )
        ],
        shared_speakers=len(speakers & seen),
        speakers=len(speakers),
    )
