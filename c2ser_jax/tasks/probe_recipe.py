"""Recipes of the probe: its config, the two published ones, and their schedules per epoch.

Shapes: G grid points, E epochs.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from c2ser_jax.errors import UserError


@dataclass(frozen=True)
class ProbeConfig:
    """Recipe of the probe; the defaults are EmoBox's grid and optimizer with a sane warm-up.

    Raises:
        UserError: a value that no probe can be trained with.
    """

    learning_rates: tuple[float, ...] = (1e-3, 1e-4)
    hidden: tuple[int, ...] = (128, 256)
    """The grid is every learning rate with every hidden width."""
    epochs: int = 100
    batch_size: int = 32
    clip_norm: float = 5.0
    """Largest gradient norm of one grid point; 0 does not clip."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """`rmsprop` is torch's: momentum gathers before the learning rate multiplies."""
    schedule: Literal["warmup", "constant", "emobox", "cyclic"] = "warmup"
    """`emobox` is the published one with its off-by-one: a full first epoch, then one at zero."""
    warmup_epochs: int = 10
    cycle_epochs: int = 10
    """For `cyclic`: epochs from the learning rate up to twice its value, and as many down."""
    momentum: tuple[float, float] = (0.8, 0.9)
    """For `rmsprop`: the lowest and highest; `cyclic` moves it against the rate, others keep it."""
    select: Literal["ua", "wa"] = "ua"
    """Development score that chooses epoch and grid point."""
    dev_share: float = 0.2
    """Share of training taken as development set, by class, when a fold brings none."""
    standardize: bool = False
    """Scale every feature to mean 0, variance 1 over the training frames (not in EmoBox)."""

    def __post_init__(self):
        for name in ("epochs", "batch_size", "warmup_epochs", "cycle_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"probe {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rates", "hidden"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise UserError(f"probe {name} is {values}; give one or more positive numbers")
        if not 0 < self.dev_share < 1:
            raise UserError(f"probe dev_share is {self.dev_share}; it must lie between 0 and 1")
        if self.clip_norm < 0:
            raise UserError(f"probe clip_norm is {self.clip_norm}; give 0 (off) or more")
        if not 0 <= self.momentum[0] <= self.momentum[1] < 1:
            raise UserError(f"probe momentum is {self.momentum}; give lowest, highest in [0, 1)")

    @property
    def points(self) -> tuple[tuple[float, int], ...]:
        """The grid: (learning rate, hidden width), G of them."""
        return tuple((rate, width) for rate in self.learning_rates for width in self.hidden)


EMOBOX = ProbeConfig(schedule="emobox")
"""As published: emo-box/EmoBox examples/sb with the grid of C2SER's k_fold_CV.sh (seed 1234)."""

IEMOCAP = ProbeConfig(
    learning_rates=(5e-4,),
    hidden=(256,),
    batch_size=128,
    clip_norm=0.0,
    optimizer="rmsprop",
    schedule="cyclic",
    select="wa",
)
"""As published: ddlBoJack/emotion2vec iemocap_downstream (seed 42, leave one session out)."""


def _triangle(cfg: ProbeConfig) -> np.ndarray:
    """0 … 1 … 0 over `2 * cycle_epochs` epochs: float64[E]."""
    return 1 - np.abs(np.arange(cfg.epochs) / cfg.cycle_epochs % 2 - 1)


def rate_factors(cfg: ProbeConfig) -> np.ndarray:
    """What multiplies the learning rate in each epoch: float64[E].

    `warmup` climbs to 1 over `warmup_epochs` (a tenth of a shorter run), then falls linearly and
    ends above 0. `emobox` reads SpeechBrain's LinearWarmupScheduler after each epoch, so epoch 1
    runs at 1, epoch 2 at 0 and epoch 3 at 1/warmup. `cyclic` is torch's triangular CyclicLR, 1 … 2.
    """
    epochs = cfg.epochs
    if cfg.schedule == "constant":
        return np.ones(epochs)
    if cfg.schedule == "cyclic":
        return 1 + _triangle(cfg)
    if cfg.schedule == "warmup":
        warmup = min(cfg.warmup_epochs, max(1, epochs // 10))
        reached = np.arange(1, epochs + 1)
        return np.minimum(reached / warmup, (epochs + 1 - reached) / (epochs + 1 - warmup))
    step = np.arange(epochs - 1)
    falling = np.maximum(0, epochs - step) / max(1, epochs - cfg.warmup_epochs)
    read = np.where(step < cfg.warmup_epochs, step / cfg.warmup_epochs, falling)
    return np.concatenate([[1.0], read])


def momenta(cfg: ProbeConfig) -> np.ndarray:
    """RMSprop's momentum in each epoch, float64[E]; 0 for Adam, which has its own."""
    low, high = cfg.momentum
    if cfg.optimizer == "adam":
        return np.zeros(cfg.epochs)
    if cfg.schedule != "cyclic":
        return np.full(cfg.epochs, high)
    return high - (high - low) * _triangle(cfg)
