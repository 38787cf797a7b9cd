"""The optimizer and its learning-rate schedule, built from optax parts."""

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from c2ser_jax.errors import UserError
from c2ser_jax.training.model_directory import flatten, nest
from c2ser_jax.training.state import compile_pattern

Schedule = Literal["cosine", "linear", "constant", "published"]
DECAY_ALL = r"(?!)"
"""A pattern that matches nothing, so that everything decays."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move.

    `adamw` decays weights beside the gradient (as fairseq's `adam` does too), `adam` adds the
    decay to the gradient (as torch.optim.Adam). `learning_rate_scales` are (path pattern, factor)
    pairs, the first that matches counts: ("encoder/", 0.1) trains the encoder at a tenth.
    `schedule` "published" is the released C2SER's: see `published_rate`. `decay_exclude` names what
    doesn't decay; `DECAY_ALL` matches nothing.
    """

    name: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    decay_exclude: str = r".*(bias|scale|extra_tokens)$"
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    end_learning_rate: float = 0.0
    clip_norm: float | None = None
    learning_rate_scales: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        scales = tuple((path, factor) for path, factor in self.learning_rate_scales)
        object.__setattr__(self, "learning_rate_scales", scales)  # programs are kept by it
        if self.name not in ("adamw", "adam"):
            raise UserError(f"the optimizer {self.name!r} is unknown: choose adamw or adam")
        if self.schedule not in get_args(Schedule):
            known = ", ".join(get_args(Schedule))
            raise UserError(f"the schedule {self.schedule!r} is unknown: choose one of {known}")
        if self.schedule == "published" and (self.warmup_steps < 1 or self.end_learning_rate):
            raise UserError(
                "the published schedule needs warmup_steps ≥ 1 and has no end_learning_rate, given "
                f"are {self.warmup_steps} and {self.end_learning_rate}"
            )
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                "the optimizer needs learning_rate > 0, warmup_steps ≥ 0, weight_decay ≥ 0, given "
                f"are {self.learning_rate}, {self.warmup_steps} and {self.weight_decay}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"clip_norm is {self.clip_norm}: give a positive number, or none")
        for pattern in (self.decay_exclude, *(p for p, _ in self.learning_rate_scales)):
            compile_pattern(pattern)


@functools.lru_cache(maxsize=4)
def learning_rate_schedule(cfg: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up to the peak, then the named way down.

    Step s of the warm-up has peak · (s + 1) / warmup_steps, so no step is wasted at rate 0.
    """
    peak, end = cfg.learning_rate, cfg.end_learning_rate
    if total_steps <= 0 or cfg.warmup_steps > total_steps:
        raise UserError(
            f"warmup_steps is {cfg.warmup_steps} and steps is {total_steps}: the warm-up must "
            "end within the run"
        )
    if cfg.schedule == "published":
        return published_rate(peak, cfg.warmup_steps)
    rest = max(total_steps - cfg.warmup_steps, 1)
    if cfg.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=end / peak)
    elif cfg.schedule == "linear":
        after = optax.linear_schedule(peak, end, rest)
    else:
        after = optax.constant_schedule(peak)
    if not cfg.warmup_steps:
        return after
    first = peak / cfg.warmup_steps
    warmup = optax.linear_schedule(first, peak, max(cfg.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def published_rate(peak: float, warmup_steps: int) -> optax.Schedule:
    """Returns step -> peak · W^0.5 · min(n^-0.5, n · W^-1.5) with n = max(1, updates made).

    Linear up to the peak at W updates, then falling with the root; the first two updates have the
    same rate. Source: `WarmupLR` of C2SER's `scheduler.py`.
    """

    def rate(step: Any) -> Any:
        n = jnp.maximum(step, 1).astype(jnp.float32)
        return peak * jnp.minimum(n / warmup_steps, jnp.sqrt(warmup_steps / n))

    return rate


@functools.lru_cache(maxsize=4)
def build(cfg: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Returns clipping by the global norm, Adam, weight decay and the schedule, in this order.

    Equal arguments give the object that is kept of them, by which programs are kept in turn.
    """
    excluded = compile_pattern(cfg.decay_exclude)
    decay = optax.add_decayed_weights(
        cfg.weight_decay, mask=lambda params: _by_path(params, lambda p: not excluded.match(p))
    )
    adam = optax.scale_by_adam(b1=cfg.beta1, b2=cfg.beta2, eps=cfg.epsilon)
    parts: list[optax.GradientTransformation] = []
    if cfg.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(cfg.clip_norm))
    if not cfg.weight_decay:
        parts.append(adam)
    else:
        parts.extend([adam, decay] if cfg.name == "adamw" else [decay, adam])
    if cfg.learning_rate_scales:
        parts.append(_scale_by_path(cfg.learning_rate_scales))
    parts.append(optax.scale_by_learning_rate(learning_rate_schedule(cfg, total_steps)))
    return optax.chain(*parts)


def _scale_by_path(scales: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    patterns = [(compile_pattern(pattern), factor) for pattern, factor in scales]

    def factor(path: str) -> float:
        return next((f for pattern, f in patterns if pattern.match(path)), 1.0)

    def update(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda u, f: u * f, updates, _by_path(updates, factor))

    return optax.stateless(update)


def _by_path(params: Any, value: Any) -> Any:
    return nest({path: value(path) for path in flatten(params)})
