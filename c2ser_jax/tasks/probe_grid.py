"""The program that trains and applies all grid points of the probe at once.

Shapes: N utterances, P packed frames (the utterances of a batch laid end to end), F feature width,
B batch rows, S steps per epoch, G grid points, H the grid's largest hidden width, C classes,
E epochs. Masks: True = real.

Every grid point is one entry of a leading axis of parameters and optimizer state; the step is
`jax.vmap` over it and an epoch a `lax.scan`. Narrower heads are padded to H with units that are
switched off, so each point computes exactly the model it names. Batches are packed instead of
padded: any shuffle costs little more than its real frames, and one program serves all epochs and
folds.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from c2ser_jax.models.heads import packed_logits
from c2ser_jax.tasks.probe_recipe import ProbeConfig
from c2ser_jax.tasks.task import Params


class PackedFrames(NamedTuple):
    """Utterances laid end to end: frames are read as `(values - shift) * scale`."""

    values: Any
    """float32[total, F]"""
    starts: Any
    """int32[N], first frame of each utterance"""
    lengths: Any
    """int32[N], frames of each utterance, at least 1"""
    shift: Any
    """float32[F]"""
    scale: Any
    """float32[F]"""


def pack(values, starts, lengths) -> PackedFrames:
    """Moves float32[total, F] and its bounds int[N] to the device, neither shifted nor scaled."""
    width = values.shape[1]
    starts, lengths = (jnp.asarray(np.asarray(bound, np.int32)) for bound in (starts, lengths))
    shift, scale = (jnp.asarray(np.full(width, x, np.float32)) for x in (0, 1))
    return PackedFrames(jnp.asarray(values), starts, lengths, shift, scale)


class GridState(NamedTuple):
    """Parameters, optimizer moments and momentum of all grid points, each with a leading axis G."""

    params: Any
    moments: Any
    velocity: Any


def _moments(optimizer: str) -> optax.GradientTransformation:
    if optimizer == "adam":
        return optax.scale_by_adam()
    return optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False)


def start_grid(points: list[Params], cfg: ProbeConfig) -> GridState:
    """Pads heads of any hidden width to the widest and stacks them along a new axis G."""
    width = max(p["pre_net"]["bias"].shape[0] for p in points)

    def widen(p: Params) -> Params:
        extra = width - p["pre_net"]["bias"].shape[0]
        pre, post = p["pre_net"], p["post_net"]
        return {
            "pre_net": {
                "kernel": np.pad(pre["kernel"], ((0, 0), (0, extra))),
                "bias": np.pad(pre["bias"], (0, extra)),
            },
            "post_net": {
                "kernel": np.pad(post["kernel"], ((0, extra), (0, 0))),
                "bias": np.asarray(post["bias"]),
            },
        }

    params = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *map(widen, points))
    moments = jax.jit(jax.vmap(_moments(cfg.optimizer).init))(params)
    return GridState(
        params, moments, jax.tree.map(lambda p: jnp.asarray(np.zeros(p.shape, p.dtype)), params)
    )


def narrow_params(params: Params, hidden: int) -> Params:
    """One grid point's parameters without its switched-off units, as numpy arrays."""
    pre, post = params["pre_net"], params["post_net"]
    return {
        "pre_net": {
            "kernel": np.asarray(pre["kernel"])[:, :hidden],
            "bias": np.asarray(pre["bias"])[:hidden],
        },
        "post_net": {
            "kernel": np.asarray(post["kernel"])[:hidden],
            "bias": np.asarray(post["bias"]),
        },
    }


def _gather(packed: PackedFrames, rows, capacity: int):
    """Lays the frames of utterances rows int[B] (-1 = none) end to end.

    Returns float32[P, F] with P = `capacity`, and int[P], the batch row of each frame (B = unused).
    """
    lengths = jnp.where(rows >= 0, packed.lengths[rows], 0)
    ends = jnp.cumsum(lengths)
    place = jnp.arange(capacity)
    owner = jnp.searchsorted(ends, place, side="right")
    within = place - (ends - lengths)[owner]  # an unused frame reads some real one and weighs 0
    source = packed.starts[rows][owner] + within
    frames = packed.values.at[source].get(mode="clip")
    return (frames - packed.shift) * packed.scale, owner


def _chunk(capacity: int) -> int:
    return 256 if jax.default_backend() == "cpu" else capacity


def _mean_loss(params, units, frames, owner, labels, real):
    """Mean negative log likelihood over the real rows: labels int[B], real bool[B]."""
    logits = packed_logits(
        params, frames, owner, labels.shape[0], units=units, chunk=_chunk(frames.shape[0])
    )
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(real, picked, 0)) / jnp.maximum(real.sum(), 1)


@partial(
    jax.jit,
    static_argnames=("optimizer", "clip_norm", "capacity"),
    donate_argnames=("state",),
)
def train_epoch(
    state: GridState,
    packed: PackedFrames,
    labels,
    order,
    units,
    rates,
    momentum,
    *,
    optimizer: str,
    clip_norm: float,
    capacity: int,
):
    """Trains all grid points over one epoch's batches; returns (state, losses float32[S, G]).

    labels int32[N]; order int32[S, B] utterance numbers, -1 = none (a row without any is skipped);
    units float32[G, H]; rates float32[G] and momentum float32[] of this epoch. A batch's loss is
    measured before its update. `capacity` frames must hold any batch.
    """

    def update(point: GridState, units, rate, frames, owner, target, real):
        loss, grads = jax.value_and_grad(_mean_loss)(
            point.params, units, frames, owner, target, real
        )
        if clip_norm:  # torch.nn.utils.clip_grad_norm_
            scale = jnp.minimum(1.0, clip_norm / (optax.tree.norm(grads) + 1e-6))
            grads = jax.tree.map(lambda g: g * scale, grads)
        direction, moments = _moments(optimizer).update(grads, point.moments)
        velocity = jax.tree.map(lambda v, d: momentum * v + d, point.velocity, direction)
        params = jax.tree.map(lambda p, v: p - rate * v, point.params, velocity)
        return GridState(params, moments, velocity), loss

    def step(state: GridState, rows):
        def taken(state):
            frames, owner = _gather(packed, rows, capacity)
            target, real = labels[rows], rows >= 0
            one = partial(update, frames=frames, owner=owner, target=target, real=real)
            return jax.vmap(one)(state, units, rates)

        def skipped(state):
            return state, jnp.zeros(rates.shape)

        return jax.lax.cond(jnp.any(rows >= 0), taken, skipped, state)

    return jax.lax.scan(step, state, order)


@partial(jax.jit, static_argnames=("capacity",))
def _logits(params, packed: PackedFrames, units, rows, *, capacity):
    frames, owner = _gather(packed, rows, capacity)

    def one(point, units):
        count, chunk = rows.shape[0], _chunk(capacity)
        return packed_logits(point, frames, owner, count, units=units, chunk=chunk)

    return jax.vmap(one)(params, units)


def grid_logits(params, packed: PackedFrames, units, rows, *, batch_size: int, capacity: int):
    """Logits float32[G, n, C] of the utterances rows int[n], in their order; no state changes."""
    lengths = np.asarray(packed.lengths)[rows]
    parts, begin = [], 0
    while begin < len(rows):
        fits = np.searchsorted(np.cumsum(lengths[begin : begin + batch_size]), capacity, "right")
        chunk = rows[begin : begin + max(1, int(fits))]
        padded = np.full(batch_size, -1, np.int32)
        padded[: len(chunk)] = chunk
        logits = _logits(params, packed, units, padded, capacity=capacity)
        parts.append(logits[:, : len(chunk)])
        begin += len(chunk)
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


def init_points(cfg: ProbeConfig, features: int, classes: int, seed: int) -> list[Params]:
    """Start parameters of every grid point: uniform in +-1/sqrt(fan in), as torch.nn.Linear.

    Points of equal width start alike, as upstream's do.
    """

    def linear(rng: np.random.Generator, fan_in: int, width: int) -> Params:
        limit = fan_in**-0.5
        kernel = rng.uniform(-limit, limit, (fan_in, width))
        bias = rng.uniform(-limit, limit, width)
        return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}

    def start(hidden: int) -> Params:
        rng = np.random.default_rng([seed, hidden])
        return {"pre_net": linear(rng, features, hidden), "post_net": linear(rng, hidden, classes)}

    return [start(hidden) for _, hidden in cfg.points]


def epoch_orders(rows: np.ndarray, cfg: ProbeConfig, seed: int) -> np.ndarray:
    """Shuffled batches of every epoch, int32[E, S, B], -1 = none; S is rounded up to eights.

    A pure function of its arguments; all grid points see the same batches.
    """
    steps = -(-len(rows) // cfg.batch_size)
    steps = -(-steps // 8) * 8  # folds of nearly one size share a program; empty steps are skipped
    orders = np.full((cfg.epochs, steps * cfg.batch_size), -1, np.int32)
    for epoch in range(cfg.epochs):
        orders[epoch, : len(rows)] = np.random.default_rng([seed, epoch]).permutation(rows)
    return orders.reshape(cfg.epochs, steps, cfg.batch_size)


def frame_capacity(orders: np.ndarray, lengths: np.ndarray) -> int:
    """Frames that hold every batch, from a short list of sizes so that folds share programs."""
    padded = np.append(lengths, 0)  # -1 reads the 0
    needed = max(int(padded[orders].sum(-1).max()), int(lengths.max()))
    grain = 2 ** max(4, int(np.log2(needed)) - 4)  # at most 6 % too many
    return -(-needed // grain) * grain
