"""How stable answers are when prompt, seed, batch size or mode changes, and how often they fail.

No jax. Shapes: N items, A answers of each (one per condition), V values that occur, R resamples.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import bootstrap_intervals, percentile_interval

Answers = Sequence[str | None]
Interval = dict[str, float]
"""{"value", "low", "high", "sd"}."""


def agreement(
    answers: Mapping[str, Answers],
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Compares the answers of several conditions, such as prompts, or explicit and implicit.

    Args:
      answers: {condition: its N labels}, items in the same order; None, an answer that names no
        label, is a value of its own.
      groups: N names, such as speakers, that are resampled whole; None: items are.
      resamples, seed, level: of the percentile bootstrap.

    Returns:
      {"num", "conditions", "agreement", "kappa", "changed", "pairs"}. `agreement`: share of the
      pairs of conditions that agree, mean over items. `kappa`: the same beyond what the overall
      shares of the labels give by chance (Fleiss 1971; 1 when only one label ever occurs).
      `changed`: share of items whose answers aren't all the same. Each is an `Interval`. `pairs`:
      the share that agrees for every two conditions, {"first", "second", "agreement"}.

    Raises:
      UserError: fewer than two conditions, no items, or unequal numbers of answers.
    """
    table = _table(answers)
    A = len(answers)
    counts = (table[:, :, None] == np.unique(table)).sum(1)  # [N, V]
    observed, shares = _agreement_of(counts)
    resampled = _agreement_of(*_resample(counts, groups, resamples, seed))
    options: dict[str, Any] = dict(groups=groups, resamples=resamples, seed=seed, level=level)
    return {
        "num": len(table),
        "conditions": list(answers),
        "agreement": {"value": float(observed), **percentile_interval(resampled[0], level)},
        "kappa": {
            "value": float(_beyond_chance(observed, shares)),
            **percentile_interval(_beyond_chance(*resampled), level),
        },
        "changed": share((counts.max(1) < A).tolist(), **options),
        "pairs": [
            {"first": a, "second": b, "agreement": float((table[:, i] == table[:, j]).mean())}
            for (i, a), (j, b) in itertools.combinations(enumerate(answers), 2)
        ],
    }


def answer_rates(
    named: Answers,
    labels: Sequence[str],
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """How many answers could be read, and how many name what was never asked for.

    Args:
      named: the label that each of N answers names, whether or not it is one of the task's; None
        for answers that name none.
      labels: the label set of the task.
      groups, resamples, seed, level: as `agreement`.

    Returns:
      {"num", "parse_rate", "hallucination_rate", "valid_rate"}: shares of answers, as `Interval`s,
      that name a label at all, one outside the set, one inside it.

    Raises:
      UserError: no answers.
    """
    allowed = set(labels)
    flags = {
        "parse_rate": [name is not None for name in named],
        "hallucination_rate": [name is not None and name not in allowed for name in named],
        "valid_rate": [name in allowed for name in named],
    }
    options: dict[str, Any] = dict(groups=groups, resamples=resamples, seed=seed, level=level)
    return {"num": len(named), **{k: share(v, **options) for k, v in flags.items()}}


def share(
    flags: Sequence[bool],
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The share of N facts that are true, with its bootstrap interval.

    Raises:
      UserError: no facts, or a number of groups that isn't N.
    """
    hits = [int(flag) for flag in flags]
    interval = bootstrap_intervals(
        [1] * len(hits), hits, ["no", "yes"], metrics=("wa",), resamples=resamples, seed=seed,
        level=level, groups=groups,
    )["wa"]  # fmt: skip
    return {"value": sum(hits) / len(hits), **interval}


def _table(answers: Mapping[str, Answers]) -> np.ndarray:
    """Numbers int64[N, A] of the answers, -1 for None."""
    lengths = {name: len(column) for name, column in answers.items()}
    if len(answers) < 2:
        raise UserError("agreement needs the answers of two conditions at least")
    if len(set(lengths.values())) > 1 or not min(lengths.values()):
        told = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise UserError(f"every condition needs an answer for every item, given are {told}")
    names = sorted({name for column in answers.values() for name in column if name is not None})
    number = {name: i for i, name in enumerate(names)}
    columns = [[-1 if a is None else number[a] for a in column] for column in answers.values()]
    return np.array(columns, np.int64).T


def _agreement_of(
    counts: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(share of agreeing pairs float64[...], shares of the values float64[..., V]).

    Of counts int64[N, V], how many answers of each item have each value; items weigh [..., N].
    """
    weights = np.ones(len(counts)) if weights is None else weights
    answers = counts.sum(1)[0]
    agreeing = (counts * (counts - 1)).sum(1) / (answers * (answers - 1))
    drawn = weights.sum(-1)
    return weights @ agreeing / drawn, weights @ counts / (answers * drawn)[..., None]


def _resample(
    counts: np.ndarray, groups: Sequence[Any] | None, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(kinds of items int64[P, V], how often each is drawn int64[R, P]).

    Items with the same counts are one kind, so a resample is one multinomial draw of the P kinds,
    or of the groups, whose kinds are then added up.
    """
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    kind, rng = kind.reshape(-1), np.random.default_rng(seed)
    if groups is None:
        return kinds, rng.multinomial(len(kind), np.bincount(kind) / len(kind), resamples)
    if len(groups) != len(kind):
        raise UserError(f"{len(groups)} group names for {len(kind)} items: give one for each")
    _, member = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)
    inside = np.zeros((int(member.max()) + 1, len(kinds)), np.int64)
    np.add.at(inside, (member, kind), 1)
    draws = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), resamples)
    return kinds, draws @ inside


def _beyond_chance(observed: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(observed - chance) / (1 - chance) for shares [..., V]; 1 where chance agrees always."""
    left = 1.0 - np.square(shares).sum(-1)
    return np.where(left > 1e-12, 1.0 - (1.0 - observed) / np.maximum(left, 1e-12), 1.0)
