"""SpecAugment and SpecSub on log-mel features, on the device, each row by its own key.

What is drawn are integers inside the row's real length, so a row is augmented the same whatever it
is padded to or batched with. Drawing and applying are apart; applying is a pure function.
Shapes: B batch, M mel frames, F mel bins, K masks or substitutions of one kind.
"""

import dataclasses
from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp

from c2ser_jax.models.config_checks import Complaints, refuse


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """How much is set to zero; the defaults are the released C2SER's, a count of 0 is off.

    Each mask starts anywhere and is 1 to `max_time_frames` (10 ms each) or `max_frequency_bins`
    long, cut at the end. Source: Park et al. 2019 (arXiv 1904.08779) without time warping.
    """

    time_masks: int = 2
    max_time_frames: int = 50
    frequency_masks: int = 2
    max_frequency_bins: int = 10

    def __post_init__(self):
        """Raises UserError for counts that mean nothing."""
        refuse(_complaints(self))


@dataclasses.dataclass(frozen=True)
class SpecSubConfig:
    """How much is replaced by earlier frames; the defaults are the released C2SER's, 0 is off.

    Each substitution starts anywhere, is 1 to `max_frames` long, cut at the end, and takes what
    lies up to all the way back. Source: U2++ (arXiv 2106.05642), section 3.2.3.
    """

    substitutions: int = 3
    max_frames: int = 30

    def __post_init__(self):
        """Raises UserError for counts that mean nothing."""
        refuse(_complaints(self))


def _complaints(cfg: SpecAugmentConfig | SpecSubConfig) -> Complaints:
    for field in dataclasses.fields(cfg):
        value, least = getattr(cfg, field.name), 1 if field.name.startswith("max_") else 0
        yield (
            not isinstance(value, int) or isinstance(value, bool) or value < least,
            f"{field.name} is {value!r}: it must be a whole number, at least {least}",
        )


@flax.struct.dataclass
class SpecAugmentDraws:
    """int32[B, K] each: where masks start and how long they are, before the end cuts them."""

    time_start: jax.Array
    time_length: jax.Array
    frequency_start: jax.Array
    frequency_length: jax.Array


@flax.struct.dataclass
class SpecSubDraws:
    """int32[B, K] each: start and length of what is replaced, and how far back its source is."""

    start: jax.Array
    length: jax.Array
    back: jax.Array


def row_keys(key, rows: int):
    """B keys of one: row r's is fold_in(key, r), whatever the number of rows."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(rows))


def draw_spec_augment(keys, lengths, cfg: SpecAugmentConfig, *, bins: int) -> SpecAugmentDraws:
    """Draws the masks of every row.

    Args:
      keys: one jax.random key per row.
      lengths: int32[B], real frames; a row without any has nothing to mask.
      cfg: how many and how long.
      bins: F.
    """

    def draw(key, length):
        time, frequency = jax.random.split(key)
        return SpecAugmentDraws(
            *_spans(time, cfg.time_masks, length, cfg.max_time_frames),
            *_spans(frequency, cfg.frequency_masks, bins, cfg.max_frequency_bins),
        )

    return jax.vmap(draw)(keys, lengths)


def draw_spec_sub(keys, lengths, cfg: SpecSubConfig) -> SpecSubDraws:
    """Draws the substitutions of every row; arguments as `draw_spec_augment`."""

    def draw(key, length):
        span, source = jax.random.split(key)
        start, count = _spans(span, cfg.substitutions, length, cfg.max_frames)
        return SpecSubDraws(start, count, jax.random.randint(source, start.shape, 0, start + 1))

    return jax.vmap(draw)(keys, lengths)


def _spans(key, count: int, room, longest: int) -> Iterator[jax.Array]:
    """Starts in [0, room) and lengths in [1, longest], int32[count] each."""
    starts, lengths = jax.random.split(key)
    yield jax.random.randint(starts, (count,), 0, jnp.maximum(room, 1))
    yield jax.random.randint(lengths, (count,), 1, longest + 1)


def apply_spec_augment(features, lengths, draws: SpecAugmentDraws):
    """features float[B, M, F] with zeros under the masks; frames from lengths int32[B] on stay."""
    _, M, F = features.shape
    real = jnp.arange(M) < lengths[:, None]
    time = _covered(M, draws.time_start, draws.time_length)
    frequency = _covered(F, draws.frequency_start, draws.frequency_length)
    hidden = (time[:, :, None] | frequency[:, None, :]) & real[:, :, None]
    return jnp.where(hidden, jnp.zeros((), features.dtype), features)


def _covered(size: int, start, length):
    """bool[B, size]: whether a place lies in one of the spans int32[B, K]."""
    at = jnp.arange(size)[:, None]
    inside = (at >= start[:, None]) & (at < (start + length)[:, None])
    return inside.any(-1)


def apply_spec_sub(features, lengths, draws: SpecSubDraws):
    """features float[B, M, F] with frames replaced, read from what was given.

    Where substitutions overlap the last one counts. Frames from lengths int32[B] on stay.
    """
    at = jnp.arange(features.shape[1])

    def sources(length, row: SpecSubDraws):
        source = at
        for k in range(row.start.shape[0]):
            inside = (at >= row.start[k]) & (at < row.start[k] + row.length[k]) & (at < length)
            source = jnp.where(inside, at - row.back[k], source)
        return source

    chosen = jax.vmap(sources)(lengths, draws)
    return jax.vmap(lambda x, i: x[i])(features, chosen)


def augment(
    keys, features, lengths, *, spec_augment: SpecAugmentConfig | None = None,
    spec_sub: SpecSubConfig | None = None,
):  # fmt: skip
    """Masks, then substitutes, as published; None leaves a step out.

    Args:
      keys: one jax.random key per row (`row_keys` makes them of one).
      features: float[B, M, F], real frames in front.
      lengths: int32[B], real frames.
      spec_augment, spec_sub: how much; one's draws don't depend on the other.

    Returns:
      float[B, M, F].
    """
    keys = jax.vmap(jax.random.split)(keys)
    if spec_augment is not None:
        draws = draw_spec_augment(keys[:, 0], lengths, spec_augment, bins=features.shape[2])
        features = apply_spec_augment(features, lengths, draws)
    if spec_sub is not None:
        features = apply_spec_sub(features, lengths, draw_spec_sub(keys[:, 1], lengths, spec_sub))
    return features
