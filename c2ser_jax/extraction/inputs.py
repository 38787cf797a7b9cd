"""Whatever a caller may give as audio, as clips."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from c2ser_jax.data.audio import read_audio
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import Clip


def clips_from(audio: Any, rate: int | None) -> tuple[list[Clip], bool]:
    """(clips, whether a single input was given).

    audio: a path, samples [M] or [M, channels] with their `rate` in Hz, an `Utterance`, a mapping
    with "array" and "sampling_rate", an open file, or a list of such.

    Raises:
      UserError: an input of another type, or samples without their rate.
    """
    if isinstance(audio, list | tuple):
        if audio and all(np.isscalar(value) and not isinstance(value, str) for value in audio):
            raise UserError(
                "a list holds several inputs; give samples as an array: numpy.asarray(samples)"
            )
        return [_clip(item, rate, place) for place, item in enumerate(audio)], False
    return [_clip(audio, rate, 0)], True


def _clip(item: Any, rate: int | None, place: int) -> Clip:
    if isinstance(item, Clip):
        return item
    if isinstance(item, Utterance):
        return Clip.of(item)
    if isinstance(item, str | os.PathLike):
        return Clip.of_file(os.fspath(item))
    if isinstance(item, Mapping) and "array" in item and "sampling_rate" in item:
        return Clip.of_array(f"array {place}", item["array"], item["sampling_rate"])
    if hasattr(item, "read"):
        stream: Any = item
        name = str(getattr(item, "name", f"file {place}"))
        return Clip(name, audio=read_audio(stream))
    if not hasattr(item, "__array__"):
        raise UserError(
            f"cannot take audio from a {type(item).__name__}; give a path, or an array with rate="
        )
    if rate is None:
        raise UserError("samples were given without their rate; add rate=16000 or what it is")
    return Clip.of_array(f"array {place}", item, rate)
