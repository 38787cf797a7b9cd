"""Runs the whole model over any number of clips of any length with a handful of compiled programs.

Lengths are read from the headers, shapes planned for them, clips decoded in threads, batched by
language and length, answered, and given out window by window as they are done.

Shapes: B rows, N samples, P prompt tokens, J labels, M new tokens at most.
"""

import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.answering.ask import Ask
from c2ser_jax.answering.program import Found, Question, answer
from c2ser_jax.answering.texts import AnswerTexts
from c2ser_jax.data.prompts import Language
from c2ser_jax.decoding.options import DecodingConfig
from c2ser_jax.errors import UserError
from c2ser_jax.extraction.clips import (
    RESAMPLING_SAMPLES,
    Clip,
    Cutting,
    Failure,
    Segment,
    decode,
    estimate_lengths,
)
from c2ser_jax.extraction.engine import (
    Batch,
    compile_samples,
    fill_batches,
    flops_per_sample,
    one_behind,
)
from c2ser_jax.extraction.shapes import Shape, plan_shapes
from c2ser_jax.models.c2ser import C2serConfig
from c2ser_jax.models.connector import STRIDES
from c2ser_jax.models.log_mel import HOP_SAMPLES
from c2ser_jax.parallel.mesh import MeshConfig, make_local_mesh, make_mesh
from c2ser_jax.parallel.rules import batch_sharding, replicated

NEW_TOKENS = {"labels": 0, "implicit": 64, "explicit": 400}
"""The longest written answer where nobody asks for another."""
_FEWEST_NEW_TOKENS = 8


@dataclass(frozen=True)
class Heard:
    """What was answered about a clip, or about one window of it.

    scores float64[J], log-probabilities among the labels; tokens int32[n], those of the written
    answer, or None, with `reasoning` of them before the sentence that names the label. It answers
    for samples `start` to `end` of the clip's `samples`.
    """

    index: int
    start: int
    end: int
    samples: int
    last: bool
    scores: np.ndarray
    tokens: np.ndarray | None
    reasoning: int


class AnswerEngine:
    """The whole model with its parameters on the devices, and the programs compiled so far."""

    def __init__(
        self,
        cfg: C2serConfig,
        params: dict[str, Any],
        texts: AnswerTexts,
        *,
        batch_seconds: float,
        window_seconds: float,
        threads: int = 2,
        log: Callable[[str], None] | None = None,
    ):
        """`batch_seconds` of audio make a batch, padding included; longer audio is cut into windows
        of `window_seconds`; `log` takes a line for every program compiled (default: standard
        error).

        Raises:
          UserError: windows longer than the encoder hears.
        """  # noqa: D205
        longest = cfg.max_samples / cfg.acoustic.sample_rate
        if window_seconds > longest:
            raise UserError(
                f"windows of {window_seconds:g} s are longer than the {longest:g} s that the "
                "model's encoder hears at once; give shorter ones"
            )
        self.cfg, self.texts, self.threads = cfg, texts, threads
        self.cutting = Cutting(window_seconds, min(1.0, window_seconds / 4))
        self._batch_samples = int(batch_seconds * cfg.acoustic.sample_rate)
        self._log = log or (lambda line: print(line, file=sys.stderr, flush=True))
        self._mesh = make_local_mesh() if jax.process_count() > 1 else make_mesh(MeshConfig())
        self._rows, self._whole = batch_sharding(self._mesh), replicated(self._mesh)
        self._params = jax.device_put(params, self._whole)
        self._compiled: dict[tuple, Callable] = {}
        self.compile_seconds = 0.0

    def run(
        self,
        clips: Sequence[Clip],
        ask: Ask,
        languages: Sequence[Language],
        *,
        alone: bool = False,
    ) -> Iterator[Heard | Failure]:
        """Yields what was heard of `clips`, each asked about in its own of `languages`.

        The windows of a clip come in order, clips in no promised one. `alone` gives every window a
        batch of its own, which changes nothing but the time.

        Raises:
          UserError: prompt, speech and answer need more positions than the language model has.
        """
        self.check_context(ask)
        lengths, failures = estimate_lengths(clips, max(2, self.threads))
        yield from failures
        model, largest = self.cfg.acoustic, self.cutting.samples(self.cfg.acoustic)[0]
        if ask.long_audio == "refuse":
            most = largest + RESAMPLING_SAMPLES
            for index in [i for i, samples in lengths.items() if samples > most]:
                yield self._too_long(index, clips[index], lengths.pop(index))
        shapes = plan_shapes(
            [n for samples in lengths.values() for n in self._segments(samples)],
            batch_samples=0 if alone else self._batch_samples,
            largest=largest,
            compile_samples=compile_samples(work_per_sample(self.cfg)),
            row_multiple=self._mesh.size,
        )
        order = sorted(lengths, key=lambda index: (-lengths[index], index))
        source = decode(clips, order, model, self.cutting, self.threads)
        if ask.long_audio == "refuse":
            source = self._refuse_windows(source, clips)
        batches = fill_batches(
            source, shapes, Shape(largest, self._mesh.size), lambda index: languages[index]
        )
        yield from one_behind(batches, partial(self._dispatch, ask), self._finish)

    def new_tokens(self, ask: Ask) -> int:
        """The longest answer that is written."""
        if ask.mode == "labels":
            return 0
        if ask.mode == "implicit" and ask.constrained:
            return self.texts.longest
        most = min(NEW_TOKENS[ask.mode], self.room(ask))
        return ask.max_new_tokens or max(_FEWEST_NEW_TOKENS, most)

    def room(self, ask: Ask) -> int:
        """Positions that the model's context leaves for an answer; below 1 it is too short."""
        return self.cfg.llm.max_positions - self._positions(ask)

    def check_context(self, ask: Ask) -> None:
        """Raises UserError when the longest prompt, speech and answer don't fit the model."""
        needed, has = self._positions(ask) + self.new_tokens(ask), self.cfg.llm.max_positions
        if needed > has:
            prompt = self.texts.prompt_tokens(ask.mode, ask.prompt)
            raise UserError(
                f"a prompt of {prompt} tokens, speech and answer need {needed} positions, the "
                f"language model has {has}: shorten the prompt, lower max_new_tokens or give a "
                "shorter window"
            )

    def _positions(self, ask: Ask) -> int:
        """Positions of the prompt asked, window and label at their longest, nothing written."""
        samples = self.cutting.samples(self.cfg.acoustic)[0]
        frames = -(-samples // (2 * HOP_SAMPLES))
        for stride in STRIDES:
            frames = -(-frames // stride)
        speech = self.cfg.acoustic_token_count + frames + 2
        return self.texts.prompt_tokens(ask.mode, ask.prompt) + speech + self.texts.longest

    def _refuse_windows(
        self, source: Iterator[Segment | Failure], clips: Sequence[Clip]
    ) -> Iterator[Segment | Failure]:
        """What is decoded, a failure for every clip that its header let pass and is too long."""
        for item in source:
            if isinstance(item, Failure) or item.windows == 1:
                yield item
            elif item.kept.offset == 0:
                yield self._too_long(item.index, clips[item.index], item.samples)

    def _too_long(self, index: int, clip: Clip, samples: int) -> Failure:
        model = self.cfg.acoustic
        heard = self.cutting.samples(model)[0] / model.sample_rate
        return Failure(
            index, "too long",
            f"{clip.path or clip.id}: {samples / model.sample_rate:.1f} s are more than the "
            f"{heard:g} s that are heard at once; cut it, or let it be heard in windows",
        )  # fmt: skip

    def _segments(self, samples: int) -> list[int]:
        lengths = self.cutting.segment_lengths(samples, self.cfg.acoustic)
        return [n for n in lengths if n >= self.cfg.acoustic.receptive_samples]

    def _dispatch(self, ask: Ask, batch: Batch) -> tuple[list[Segment], Found]:
        rows, samples = batch.shape.rows, batch.shape.samples
        audio, lengths = np.zeros((rows, samples), np.float32), np.zeros(rows, np.int32)
        seeds, draws = np.zeros(rows, np.uint32), ask.mode != "labels" and ask.decoding == "sample"
        for row, segment in enumerate(batch.segments):
            n = lengths[row] = len(segment.audio)
            audio[row, :n] = segment.audio
            if draws:  # from what is heard and where, whatever it is called or batched with
                heard = np.ascontiguousarray(segment.audio).data
                seeds[row] = zlib.crc32(heard, segment.kept.offset)
        # An empty row would be no audio at all: it repeats the first.
        audio[len(batch.segments) :], lengths[len(batch.segments) :] = audio[0], lengths[0]
        arrays = jax.device_put((audio, lengths, seeds), self._rows)
        asked = self.texts.question(ask.mode, batch.group, ask.prompt)
        trie = None
        if ask.mode == "implicit" and ask.constrained:
            trie = self.texts.trie(batch.group)
        rest = jax.device_put((asked, jnp.uint32(ask.seed), trie), self._whole)
        function = self._compile(batch.shape, ask, (*arrays, *rest))
        return batch.segments, function(self._params, *arrays, *rest)

    def _compile(self, shape: Shape, ask: Ask, arrays: tuple) -> Callable:
        rule = None
        if ask.mode != "labels":
            tokenizer = self.texts.tokenizer
            rule = DecodingConfig(
                mode=ask.decoding, max_new_tokens=self.new_tokens(ask), eos=(tokenizer.eos,),
                pad=tokenizer.pad,
            )  # fmt: skip
        sizes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(arrays))
        key = (ask.mode, rule, sizes)
        if key not in self._compiled:
            start = time.perf_counter()
            function = _program(self.cfg, ask.mode, rule)
            self._compiled[key] = function.lower(self._params, *arrays).compile()
            seconds = time.perf_counter() - start
            self.compile_seconds += seconds
            self._log(f"compiling {ask.mode}, shape {shape}  {seconds:.1f} s")
        return self._compiled[key]

    def _finish(self, work: tuple[list[Segment], Found]) -> Iterator[Heard | Failure]:
        segments, found = work[0], jax.tree.map(np.asarray, work[1])
        hop = self.cfg.acoustic.hop_samples
        for row, segment in enumerate(segments):
            scores = found.scores[row].astype(np.float64)
            if not np.isfinite(scores).all():
                message = "the model gives scores that are not finite; check the checkpoint"
                yield Failure(segment.index, "not finite", message)
                continue
            kept, tokens, reasoning = segment.kept, None, 0
            if found.tokens is not None:
                tokens = found.tokens[row, : found.lengths[row]]
                reasoning = int(found.reasoning[row])
            last = kept.offset + kept.last - kept.first >= segment.frames
            start = kept.offset * hop
            end = segment.samples if last else (kept.offset + kept.last - kept.first) * hop
            yield Heard(segment.index, start, end, segment.samples, last, scores, tokens, reasoning)


@lru_cache(maxsize=8)
def _program(cfg: C2serConfig, mode: str, rule: DecodingConfig | None) -> Any:
    """`_answer`, jitted: one object, so that a model loaded again is not compiled again."""
    return jax.jit(partial(_answer, cfg, mode, rule))


def _answer(cfg, mode, rule, params, audio, lengths, seeds, question: Question, seed, trie):
    """`answer` with keys of the rows' own made from seed uint32[] and seeds uint32[B]."""
    keys = None
    if rule is not None and rule.mode == "sample":
        key = jax.random.key(seed)
        keys = jax.vmap(partial(jax.random.fold_in, key))(seeds)
    return answer(cfg, mode, rule, params, audio, lengths, question, keys, trie)


def work_per_sample(cfg: C2serConfig) -> float:
    """Operations of matrix products per sample of audio; attention, prompt and answer left out."""
    llm, rate = cfg.llm, cfg.acoustic.sample_rate
    encoder = cfg.encoder.depth * (4 * cfg.encoder.width + 2 * cfg.encoder.mlp_width)
    block = 2 * llm.width + 2 * llm.key_value_heads * llm.head_width + 3 * llm.mlp_width
    frames = 2 * 50 * encoder * cfg.encoder.width + 2 * 12.5 * llm.depth * block * llm.width
    return flops_per_sample(cfg.acoustic) + frames / rate
