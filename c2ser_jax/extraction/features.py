"""Puts the pieces of clips together: frame features, utterance vectors, utterance tokens.

Shapes: T frames of a clip, D width, E extra tokens.
A clip in several windows has the mean over all its frames as utterance vector, and as tokens the
mean of its windows' tokens, weighted with the frames that each window keeps.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from c2ser_jax.extraction.clips import Clip, Failure
from c2ser_jax.extraction.engine import Engine, Piece
from c2ser_jax.extraction.store import FeatureStore, FrameFile

Granularity = Literal["frame", "utterance", "tokens"]
TokenForm = Literal["model", "published"]
_OUTPUT = {"frame": "frames", "utterance": "pooled", "tokens": "tokens"}


class Assembler:
    """Takes pieces in the engine's order and returns the array of every clip that is complete."""

    def __init__(self, output: str, *, first_frames: int | None = None):
        """`output` is the engine's; `first_frames` keeps only so many frames of a clip."""
        self.output, self._first = output, first_frames
        self._parts: dict[int, list[tuple[int, np.ndarray]]] = {}

    @classmethod
    def of(cls, granularity: Granularity, token_form: TokenForm, tokens: int) -> "Assembler":
        """For features of a model with `tokens` extra tokens.

        The "published" tokens are the first min(E, T) frames, as upstream's script slices them.
        """
        if granularity == "tokens" and token_form == "published":
            return cls("frames", first_frames=tokens)
        return cls(_OUTPUT[granularity])

    def add(self, piece: Piece) -> np.ndarray | None:
        """float32 [T, D], [D] or [E, D] when the piece is its clip's last, else None."""
        value = piece.values[self.output]
        if self._first is not None:
            value = value[: max(0, self._first - piece.kept.offset)]
        if piece.windows > 1:
            value = value.copy()  # not a view that keeps the whole batch alive
        parts = self._parts.setdefault(piece.index, [])
        parts.append((piece.kept.last - piece.kept.first, value))
        if not piece.last:
            return None
        del self._parts[piece.index]
        if len(parts) == 1:
            return value
        if self.output.startswith("frame"):
            return np.concatenate([part for _, part in parts])
        total = sum(frames * part.astype(np.float64) for frames, part in parts)
        return (total / piece.frames).astype(np.float32)  # type: ignore[union-attr]

    def drop(self, index: int) -> None:
        """Forgets the pieces of a clip that failed."""
        self._parts.pop(index, None)


def extract_features(
    engine: Engine,
    clips: Sequence[Clip],
    store: FeatureStore,
    *,
    granularity: Granularity,
    token_form: TokenForm = "model",
    layer: int | None = None,
    progress: Callable[[Clip], object] | None = None,
) -> int:
    """Writes the features of `clips` into `store` as they come; returns how many failed.

    Frames of long clips go to the disk window by window. `progress` is called once per clip.
    """
    tell = progress or (lambda clip: None)
    assembler = Assembler.of(granularity, token_form, engine.model.extra_tokens)
    open_files: dict[int, FrameFile] = {}
    failed: set[int] = set()
    for item in engine.run(clips, (assembler.output,), layer=layer):
        clip = clips[item.index]
        if item.index in failed:
            continue
        if isinstance(item, Failure):
            failed.add(item.index)
            assembler.drop(item.index)
            if item.index in open_files:
                open_files.pop(item.index).discard()
            store.fail(clip.id, clip.path, item.reason, item.message)
            tell(clip)
            continue
        row = {
            "path": clip.path,
            "frames": item.frames,
            "seconds": round(item.samples / engine.model.sample_rate, 6),
            "windows": item.windows,
        }
        if granularity == "frame" and item.windows > 1:
            values = item.values["frames"]
            shape = (item.frames, values.shape[1])
            if item.index not in open_files:
                open_files[item.index] = store.open_frames(clip.id, shape)
            store.write(open_files[item.index], item.kept.offset, values)
            if not item.last:
                continue
            store.commit(open_files.pop(item.index), row)
        else:
            values = assembler.add(item)
            if values is None:
                continue
            store.add(clip.id, values, row)
        tell(clip)
    return len(failed)
