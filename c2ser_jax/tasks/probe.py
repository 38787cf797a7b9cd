"""Trains the downstream head on frozen features: a grid of settings, chosen on development data.

Shapes: N utterances, F feature width, G grid points, E epochs, C classes.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.errors import UserError
from c2ser_jax.tasks.probe_grid import (
    PackedFrames,
    epoch_orders,
    frame_capacity,
    grid_logits,
    init_points,
    narrow_params,
    pack,
    start_grid,
    train_epoch,
)
from c2ser_jax.tasks.probe_recipe import EMOBOX, IEMOCAP, ProbeConfig, momenta, rate_factors
from c2ser_jax.tasks.task import Params

__all__ = [
    "EMOBOX",
    "IEMOCAP",
    "GridResult",
    "PackedFrames",
    "ProbeConfig",
    "mean_recall",
    "pack",
    "predict_logits",
    "train_grid",
]


@dataclass(frozen=True)
class GridResult:
    """What `train_grid` found; `chosen` indexes the grid points."""

    points: tuple[tuple[float, int], ...]
    """(learning rate, hidden width) of each point."""
    train_losses: np.ndarray
    """float64[G, E], mean over the epoch's batches"""
    dev_scores: np.ndarray
    """float64[G, E], the configured score in [0, 1]"""
    dev_losses: np.ndarray
    """float64[G, E]"""
    best_epochs: np.ndarray
    """int[G], counted from 1; the earliest of equal ones with the lowest development loss"""
    chosen: int
    params: Params
    """The chosen point at its best epoch: a `DownstreamHead` for features as they are given."""

    @property
    def best_score(self) -> float:
        """Development score of the chosen point."""
        return float(self.dev_scores[self.chosen, self.best_epochs[self.chosen] - 1])


def mean_recall(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """UA float64[...] of logits [..., n, C] against labels int[n]: recall, mean over present."""
    hits = logits.argmax(-1) == labels
    return np.stack([hits[..., labels == c].mean(-1) for c in np.unique(labels)]).mean(0)


def _dev_measures(logits: np.ndarray, labels: np.ndarray, select: str):
    """(score, mean negative log likelihood) float64[G] each, of logits float32[G, n, C]."""
    logits = logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    loss = -log_probs[:, np.arange(len(labels)), labels].mean(-1)
    if select == "wa":
        return (logits.argmax(-1) == labels).mean(-1), loss
    return mean_recall(logits, labels), loss


def _standardized(packed: PackedFrames, rows: np.ndarray) -> PackedFrames:
    """Mean and deviation of every feature over the frames of `rows`, in float64."""
    values = np.asarray(packed.values)
    starts, lengths = np.asarray(packed.starts)[rows], np.asarray(packed.lengths)[rows]
    clips = [values[s : s + n].astype(np.float64) for s, n in zip(starts, lengths, strict=True)]
    mean = sum(clip.sum(0) for clip in clips) / lengths.sum()
    variance = sum(np.square(clip - mean).sum(0) for clip in clips) / lengths.sum()
    scale = 1 / np.sqrt(np.maximum(variance, 1e-10))
    return packed._replace(
        shift=jnp.asarray(mean, jnp.float32), scale=jnp.asarray(scale, jnp.float32)
    )


def _fold_scaling(params: Params, packed: PackedFrames) -> Params:
    """The same head for features that are neither shifted nor scaled."""
    kernel = np.asarray(packed.scale)[:, None] * params["pre_net"]["kernel"]
    bias = params["pre_net"]["bias"] - np.asarray(packed.shift) @ kernel
    return {"pre_net": {"kernel": kernel, "bias": bias}, "post_net": params["post_net"]}


@jax.jit
def _keep(best, new, improved):
    """Takes the grid points of `new` where improved bool[G]."""

    def pick(old, fresh):
        return jnp.where(improved.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old)

    return jax.tree.map(pick, best, new)


def train_grid(
    packed: PackedFrames,
    labels: np.ndarray,
    *,
    train: np.ndarray,
    dev: np.ndarray,
    classes: int,
    cfg: ProbeConfig,
    seed: int,
    capacity: int = 0,
) -> GridResult:
    """Trains every grid point on utterances train int[n], chooses epoch and point on dev int[m].

    labels int[N]. Points are compared by the development score, then the lower development loss;
    nothing else is looked at. `capacity` is the number of packed frames of a batch (at least
    `frame_capacity`), which folds may share to share a compiled program.

    Raises:
        UserError: no training or no development utterances, or every point's loss turned NaN.
    """
    train, dev, labels = (np.asarray(x, np.int32) for x in (train, dev, labels))
    if not len(train) or not len(dev):
        raise UserError(
            f"the probe got {len(train)} training and {len(dev)} development utterances; it needs "
            "both: check the fold and its labels"
        )
    if cfg.standardize:
        packed = _standardized(packed, train)
    orders = epoch_orders(train, cfg, seed)
    capacity = max(capacity, frame_capacity(orders, np.asarray(packed.lengths)))
    points = cfg.points
    state = start_grid(init_points(cfg, packed.values.shape[1], classes, seed), cfg)
    widest = max(width for _, width in points)
    units = np.array([[i < width for i in range(widest)] for _, width in points], np.float32)
    rates = np.outer(rate_factors(cfg), [rate for rate, _ in points]).astype(np.float32)
    moments = momenta(cfg).astype(np.float32)
    device_labels, steps = jnp.asarray(labels), -(-len(train) // cfg.batch_size)

    best = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.params)
    best_score, best_loss = np.full(len(points), -np.inf), np.full(len(points), np.inf)
    best_epochs = np.zeros(len(points), int)
    history = np.zeros((3, len(points), cfg.epochs))
    for epoch in range(cfg.epochs):
        state, losses = train_epoch(
            state,
            packed,
            device_labels,
            orders[epoch],
            units,
            rates[epoch],
            moments[epoch],
            optimizer=cfg.optimizer,
            clip_norm=cfg.clip_norm,
            capacity=capacity,
        )
        logits = grid_logits(
            state.params, packed, units, dev, batch_size=cfg.batch_size, capacity=capacity
        )
        score, loss = _dev_measures(logits, labels[dev], cfg.select)
        history[:, :, epoch] = np.asarray(losses)[:steps].mean(0), score, loss
        better = (score > best_score) | ((score == best_score) & (loss < best_loss))
        better &= np.isfinite(loss)
        if better.any():
            best = _keep(best, state.params, better)
            best_score, best_loss = np.where(better, (score, loss), (best_score, best_loss))
            best_epochs[better] = epoch + 1
    if not best_epochs.any():
        raise UserError(
            "the probe's loss was never finite: the features hold huge values, or the learning "
            f"rates {cfg.learning_rates} are far too high"
        )
    chosen = max(range(len(points)), key=lambda g: (best_score[g], -best_loss[g]))
    own = narrow_params(
        jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], best), points[chosen][1]
    )
    return GridResult(
        points=points,
        train_losses=history[0],
        dev_scores=history[1],
        dev_losses=history[2],
        best_epochs=best_epochs,
        chosen=chosen,
        params=_fold_scaling(own, packed) if cfg.standardize else own,
    )


def predict_logits(
    params: Params, packed: PackedFrames, rows: np.ndarray, *, batch_size: int = 32
) -> np.ndarray:
    """Logits float32[n, C] of one trained head for utterances rows int[n]."""
    rows = np.asarray(rows, np.int32)
    lengths = np.asarray(packed.lengths)
    longest = np.sort(lengths[rows])[::-1][:batch_size]
    capacity = frame_capacity(np.arange(len(longest))[None], longest)
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
    units = np.ones((1, params["post_net"]["kernel"].shape[0]), np.float32)
    logits = grid_logits(stacked, packed, units, rows, batch_size=batch_size, capacity=capacity)
    return logits[0]
