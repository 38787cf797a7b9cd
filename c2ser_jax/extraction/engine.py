"""Runs the encoder over any number of clips of any length with a handful of compiled shapes.

Lengths are read from the headers, shapes planned for them, clips decoded in threads in the order of
their buckets, batched, run, and given out piece by piece as they are done.

Shapes: B rows, N samples, T frames, E extra tokens, D width, C classes.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.extraction.clips import (
    Clip,
    Cutting,
    Failure,
    Kept,
    Segment,
    decode,
    estimate_lengths,
)
from c2ser_jax.extraction.shapes import Shape, plan_shapes
from c2ser_jax.models.emotion2vec import Emotion2Vec, Emotion2VecConfig, masked_mean
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh
from c2ser_jax.parallel.rules import batch_sharding, replicated

_COMPILE_FLOPS = {"cpu": 5e10}
_COMPILE_FLOPS_ELSEWHERE = 5e12
"""What a processor computes while it compiles a shape: about 1 s, as most runs find it cached."""

OUTPUTS = ("frames", "pooled", "tokens", "frame_logits")


@dataclass(frozen=True)
class EngineConfig:
    """How audio is cut and batched; results do not depend on `batch_seconds` beyond rounding."""

    batch_seconds: float = 32.0
    """Audio of one batch, padding included; a longer clip makes a batch of its own."""
    cutting: Cutting = Cutting()
    """Windows of audio that is longer than one."""
    threads: int = 2
    """Decoding threads."""


@dataclass(frozen=True)
class Piece:
    """Results of a clip, or of one window of it, for the frames that it keeps.

    values: "frames" float32[n, D], "pooled" float32[D], "tokens" float32[E, D], "frame_logits"
    float32[n, C], those that were asked for, with n = kept.last - kept.first. The pieces of a
    clip come in order; `last` marks its end. The clip has `samples` samples and `frames` frames.
    """

    index: int
    kept: Kept
    windows: int
    samples: int
    frames: int
    last: bool
    values: dict[str, np.ndarray]


@dataclass
class RunReport:
    """What a run did: its shapes, the seconds that compiling each took, its batches and audio."""

    shapes: tuple[Shape, ...] = ()
    compile_seconds: dict[str, float] = field(default_factory=dict)
    batches: dict[Shape, int] = field(default_factory=dict)
    audio_samples: int = 0

    @property
    def padding(self) -> float:
        """Samples computed per sample of audio."""
        computed = sum(shape.rows * shape.samples * n for shape, n in self.batches.items())
        return computed / max(1, self.audio_samples)


class Engine:
    """An encoder with its parameters on the devices, and the shapes compiled so far."""

    def __init__(
        self,
        model: Emotion2VecConfig,
        params: dict[str, Any],
        cfg: EngineConfig | None = None,
        *,
        log: Callable[[str], None] | None = None,
    ):
        """`params` is the tree of a model directory: "encoder" and, for frame_logits, "proj".

        `log` takes a line for every shape compiled (default: standard error).
        """
        self.model, self.cfg = model, cfg or EngineConfig()
        self.report = RunReport()
        self._log = log or (lambda line: print(line, file=sys.stderr, flush=True))
        # One of several processes answers alone, so that each may ask for something else.
        alone = jax.process_count() > 1
        self._mesh = make_local_mesh() if alone else make_mesh(MeshConfig())
        self._rows = batch_sharding(self._mesh)
        kept = {name: params[name] for name in ("encoder", "proj") if name in params}
        self._params = jax.device_put(kept, replicated(self._mesh))
        self._compiled: dict[tuple, Callable] = {}

    def run(
        self, clips: Sequence[Clip], outputs: Sequence[str], *, layer: int | None = None
    ) -> Iterator[Piece | Failure]:
        """Yields the pieces and failures of `clips`, every clip once, in no promised order.

        outputs: names of `OUTPUTS`; layer: take frames and tokens behind main block `layer`
        (counted from 1) instead of the last.
        """
        lengths, failures = estimate_lengths(clips, max(2, self.cfg.threads))
        yield from failures
        self.report = RunReport(self.plan(lengths.values()))
        order = sorted(lengths, key=lambda index: (-lengths[index], index))
        source = decode(clips, order, self.model, self.cfg.cutting, self.cfg.threads)
        forward = partial(self._dispatch, outputs=tuple(outputs), layer=layer)
        largest = Shape(self.cfg.cutting.samples(self.model)[0], self._mesh.size)
        batches = fill_batches(source, self.report.shapes, largest)
        yield from one_behind(batches, forward, self._finish)

    def plan(self, lengths: Iterable[int]) -> tuple[Shape, ...]:
        """The shapes that a run over clips of `lengths` samples compiles."""
        cutting = self.cfg.cutting
        segments = [n for samples in lengths for n in cutting.segment_lengths(samples, self.model)]
        return plan_shapes(
            [n for n in segments if n >= self.model.receptive_samples],
            batch_samples=int(self.cfg.batch_seconds * self.model.sample_rate),
            largest=cutting.samples(self.model)[0],
            compile_samples=compile_samples(flops_per_sample(self.model)),
            row_multiple=self._mesh.size,
        )

    def prepare(
        self, shapes: Iterable[Shape], outputs: Sequence[str], *, layer: int | None = None
    ) -> None:
        """Compiles `shapes` ahead of the first run that needs them."""
        for shape in shapes:
            self._compile(shape, tuple(outputs), layer)

    def _dispatch(
        self, batch: "Batch", *, outputs: tuple[str, ...], layer: int | None
    ) -> tuple[list[Segment], dict[str, jax.Array]]:
        shape, segments = batch.shape, batch.segments
        audio = np.zeros((shape.rows, shape.samples), np.float32)
        samples = np.zeros(shape.rows, np.int32)
        statistics = np.tile(np.array([0.0, 1.0], np.float32), (shape.rows, 1))
        keep = np.zeros((shape.rows, 2), np.int32)
        for row, segment in enumerate(segments):
            n = samples[row] = len(segment.audio)
            audio[row, :n] = segment.audio
            statistics[row] = segment.statistics
            keep[row] = segment.kept.first, segment.kept.last
        arrays = jax.device_put((audio, samples, statistics, keep), self._rows)
        function = self._compile(shape, outputs, layer)
        self.report.batches[shape] = self.report.batches.get(shape, 0) + 1
        self.report.audio_samples += int(samples.sum())
        return segments, function(self._params, *arrays)

    def _compile(self, shape: Shape, outputs: tuple[str, ...], layer: int | None) -> Callable:
        key = (shape, outputs, layer)
        if key not in self._compiled:
            start = time.perf_counter()
            B, N = shape.rows, shape.samples
            arrays = [
                jax.ShapeDtypeStruct(size, dtype, sharding=self._rows)
                for size, dtype in (
                    ((B, N), np.float32), ((B,), np.int32), ((B, 2), np.float32), ((B, 2), np.int32)
                )
            ]  # fmt: skip
            function = _program(self.model, outputs, layer)
            self._compiled[key] = function.lower(self._params, *arrays).compile()
            seconds = time.perf_counter() - start
            self.report.compile_seconds[str(shape)] = seconds
            self._log(f"compiling shape {shape}  {seconds:.1f} s")
        return self._compiled[key]

    def _finish(
        self, work: tuple[list[Segment], dict[str, jax.Array]]
    ) -> Iterator[Piece | Failure]:
        segments, results = work
        host = {name: np.asarray(value) for name, value in results.items()}
        for row, segment in enumerate(segments):
            kept = segment.kept
            values = {
                name: value[row, kept.first : kept.last] if name.startswith("frame") else value[row]
                for name, value in host.items()
            }
            if not all(np.isfinite(value).all() for value in values.values()):
                message = "the model gives values that are not finite; check the checkpoint"
                yield Failure(segment.index, "not finite", message)
                continue
            last = kept.offset + kept.last - kept.first >= segment.frames
            yield Piece(
                segment.index, kept, segment.windows, segment.samples, segment.frames, last, values
            )


@lru_cache(maxsize=8)
def _program(model: Emotion2VecConfig, outputs: tuple[str, ...], layer: int | None) -> Any:
    """`encode`, jitted: one object, so that a model loaded again is not compiled again."""
    return jax.jit(partial(encode, model, outputs=outputs, layer=layer))


def encode(
    model: Emotion2VecConfig, params, audio, audio_samples, audio_statistics, keep,
    *, outputs: tuple[str, ...], layer: int | None = None,
) -> dict[str, jax.Array]:  # fmt: skip
    """The `outputs` of a batch, as in `Piece` with a leading axis B and T uncut frames.

    audio float32[B, N], audio_samples int32[B], audio_statistics float32[B, 2] (mean, variance),
    keep int32[B, 2]: the frames [first, last) that "pooled" averages.
    """
    output: Any = Emotion2Vec(model).apply(
        {"params": params["encoder"]},
        audio,
        audio_samples,
        audio_statistics=audio_statistics,
        return_layers=layer is not None,
    )
    frames, tokens = output.frames, output.tokens
    if layer is not None:
        block = output.layers["block_out"][layer - 1]
        tokens, frames = block[:, : model.extra_tokens], block[:, model.extra_tokens :]
    frames, tokens = frames.astype(jnp.float32), tokens.astype(jnp.float32)
    results = {}
    if "frames" in outputs:
        results["frames"] = frames
    if "tokens" in outputs:
        results["tokens"] = tokens
    if "pooled" in outputs:
        place = jnp.arange(frames.shape[1])
        kept = (place >= keep[:, :1]) & (place < keep[:, 1:])
        results["pooled"] = masked_mean(frames, kept)
    if "frame_logits" in outputs:
        kernel, bias = params["proj"]["kernel"], params["proj"]["bias"]
        product = jnp.matmul(frames, kernel, precision=jax.lax.Precision.HIGHEST)
        results["frame_logits"] = product + bias
    return results


def flops_per_sample(model: Emotion2VecConfig) -> float:
    """Work per sample of audio, as operations of matrix products; attention's are left out.

    Small models are bound by memory, which the floor stands for (measured at widths 24 and 96).
    """
    flops, channels, hop = 0.0, 1, 1
    for layer in model.conv_layers:
        hop *= layer.stride
        flops += 2 * layer.kernel * channels * layer.channels / hop
        channels = layer.channels
    D, taps = model.width, model.position_kernel
    blocks = (model.depth + model.prenet_depth) * (4 + 2 * model.mlp_ratio) * D * D
    position = model.position_depth * taps * D * D / model.position_groups
    return max(1e4, flops + 2 * (blocks + position + channels * D) / hop)


def compile_samples(flops: float) -> int:
    """Samples that could be computed, at `flops` operations each, while a shape is compiled."""
    each = _COMPILE_FLOPS.get(jax.default_backend(), _COMPILE_FLOPS_ELSEWHERE)
    return int(each / flops)


@dataclass(frozen=True)
class Batch:
    """Segments to run together: at most `shape.rows`, all of one group."""

    shape: Shape
    segments: list[Segment]
    group: Any = None


def fill_batches(
    source: Iterable[Segment | Failure],
    shapes: Sequence[Shape],
    largest: Shape,
    group: Callable[[int], Any] = lambda index: None,
) -> Iterator[Batch | Failure]:
    """Full batches as soon as a bucket has its rows, the rest at the end; failures in their turn.

    `group` names what the clip of an index shares a batch with.
    """
    waiting: dict[tuple[Any, Shape], list[Segment]] = {}
    for item in source:
        if isinstance(item, Failure):
            yield item
            continue
        # A header may have promised less than was decoded: such a clip gets the longest shape.
        shape = next((s for s in shapes if s.samples >= len(item.audio)), largest)
        key = group(item.index), shape
        rows = waiting.setdefault(key, [])
        rows.append(item)
        if len(rows) == shape.rows:
            yield Batch(shape, waiting.pop(key), key[0])
    for (name, shape), rows in waiting.items():
        yield Batch(shape, rows, name)


def one_behind(batches, dispatch, finish):
    """Finishes a batch on the host while the next one runs on the device.

    On CPU two batches at once would only share the cores and double the memory, so there the next
    one starts when the one before has ended.
    """
    alone, running = jax.default_backend() == "cpu", None
    for batch in batches:
        if isinstance(batch, Failure):
            yield batch
            continue
        if running is not None and alone:
            jax.block_until_ready(running[1])
        started = dispatch(batch)
        if running is not None:
            yield from finish(running)
        running = started
    if running is not None:
        yield from finish(running)
