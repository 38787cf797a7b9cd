"""How the released C2SER's training filtered, batched and padded its rows, kept for comparisons.

Everything is a pure function of lengths or arrays. Batches for training are those of `batching`;
this is public API for who compares a batch, or a loss, with the published trainer's.
Source: `processor.py` of C2SER. Shapes: B rows of a batch, T mel frames, F mel bins, L answer
tokens, P prompt tokens, E emotion vectors, W their width, N samples.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2ser_jax.data.published_text import MISSING_ANSWER, MISSING_TAG, training_text
from c2ser_jax.errors import UserError

NO_PROMPT = "<no_prompt>"
ANSWER_PADDING, PROMPT_PADDING = -100, -1
FRAMES_PER_SECOND, FRAMES_PER_POSITION = 100, 8


@dataclass(frozen=True)
class PublishedRow:
    """What the filter looks at: `samples` at the file's own `rate`, tokens counted, eos included.

    `prompt_tokens` is None where the task has no prompts at all, 0 where it asks for none.
    """

    id: str
    samples: int
    rate: int
    answer_tokens: int
    prompt_tokens: int | None
    has_vectors: bool = True
    language: str | None = None
    task: str | None = None
    text: str = ""


@dataclass(frozen=True)
class PublishedFilter:
    """The limits of the released config; a frame is 10 ms, a sequence prompt + frames / 8 + answer.

    Rows of the tasks `cropped_tasks` that are too long are cut at a random place, not dropped, and
    their sequence still counts the uncut frames.
    """

    max_frames: int = 2900
    min_frames: int = 0
    max_answer_tokens: int = 200
    min_answer_tokens: int = 1
    max_sequence: int = 1000
    needs_language_and_task: bool = True
    cropped_tasks: tuple[str, ...] = ("<CAPTION>",)

    def __post_init__(self):
        for low, high in (("min_frames", "max_frames"), ("min_answer_tokens", "max_answer_tokens")):
            if not 0 <= getattr(self, low) <= getattr(self, high):
                raise UserError(
                    f"the filter's {low} is {getattr(self, low)} and {high} is "
                    f"{getattr(self, high)}: give 0 ≤ {low} ≤ {high}"
                )

    def complaint(self, row: PublishedRow) -> str | None:
        """Why a row is dropped, as a sentence; None for one that is kept.

        Raises:
          UserError: a row that passes so far and whose task has no prompts (upstream stops, too).
        """
        frames = row.samples / row.rate * FRAMES_PER_SECOND
        if row.text in (MISSING_ANSWER, MISSING_TAG):
            return f"{row.id}: its text has no answer in it; write one"
        if self.needs_language_and_task and (row.language is None or row.task is None):
            missing = "language" if row.language is None else "task"
            return f"{row.id}: it has no {missing}; name it in the list"
        if not row.has_vectors:
            return f"{row.id}: it has no emotion vectors; extract them first"
        if frames < self.min_frames:
            return f"{row.id}: {_frames(frames)} are fewer than {self.min_frames}; leave it out"
        if frames > self.max_frames and row.task not in self.cropped_tasks:
            return f"{row.id}: {_frames(frames)} are more than {self.max_frames}; cut the audio"
        if row.answer_tokens < self.min_answer_tokens:
            return f"{row.id}: its answer is empty; write one"
        if row.answer_tokens > self.max_answer_tokens:
            return (
                f"{row.id}: its answer has {row.answer_tokens} tokens, more than "
                f"{self.max_answer_tokens}; shorten it"
            )
        if row.prompt_tokens is None:
            raise UserError(f"{row.id}: the task {row.task!r} has no prompts; give it one at least")
        sequence = row.prompt_tokens + frames / FRAMES_PER_POSITION + row.answer_tokens
        if 0 < self.max_sequence < sequence:
            return (
                f"{row.id}: prompt, audio and answer take {sequence:.0f} positions, more than "
                f"{self.max_sequence}; shorten one of them"
            )
        return None

    def crop(
        self, samples: int, rate: int, task: str | None, draw: Callable[[int, int], int]
    ) -> slice:
        """The part of `samples` that is used; `draw(low, high)` gives an integer, both included."""
        frames = samples / rate * FRAMES_PER_SECOND
        if frames <= self.max_frames or task not in self.cropped_tasks:
            return slice(0, samples)
        start = draw(0, int(frames - self.max_frames))
        at = [int(frame / FRAMES_PER_SECOND * rate) for frame in (start, start + self.max_frames)]
        return slice(*at)


def _frames(frames: float) -> str:
    return f"its {frames:.2f} frames of 10 ms".replace(".00 ", " ")


def published_tokens(
    text: str,
    task: str | None,
    prompts: Mapping[str, Sequence[str]],
    encode: Callable[[str], Sequence[int]],
    eos: int,
    draw: Callable[[int, int], int],
) -> tuple[list[int], list[int] | None]:
    """Answer ids (normalised, `eos` behind) and prompt ids (a random prompt of the task, as it is).

    A row without a task transcribes. The prompt is None where `prompts` has none for the task, and
    empty for `<no_prompt>`. `draw(low, high)` gives an integer, both included.
    """
    answer = [*encode(training_text(text, task or "")), eos]
    choices = prompts.get(task or "<TRANSCRIBE>")
    if not choices:
        return answer, None
    prompt = choices[draw(0, len(choices) - 1)]
    return answer, [] if prompt == NO_PROMPT else list(encode(prompt))


def shuffled_order(count: int, size: int, generator: random.Random) -> list[int]:
    """Row numbers shuffled within buffers of `size` rows (1500 as published)."""
    buffers = _buffers(range(count), size)
    for buffer in buffers:
        generator.shuffle(buffer)
    return [i for buffer in buffers for i in buffer]


def sorted_order(frames: Sequence[int], size: int = 500) -> list[int]:
    """Row numbers by frames, ascending within buffers of `size` rows; ties keep their order."""
    buffers = _buffers(range(len(frames)), size)
    return [i for part in buffers for i in sorted(part, key=lambda i: frames[i])]


def _buffers(items: range, size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def dynamic_batches(
    frames: Sequence[int],
    answer_tokens: Sequence[int],
    prompt_tokens: Sequence[int],
    max_frames: int = 3900,
    max_sequence: int = 1900,
) -> list[list[int]]:
    """Row numbers of each batch, in the order in which upstream's `dynamic_batch` gives them.

    A row closes the open batch and starts the next one when, with it, longest frames × rows would
    be more than `max_frames`, or longest sequence × rows more than `max_sequence`. Upstream's
    quirks are kept: rows without a prompt fill a batch of their own, whose test of frames looks at
    the longest row of the other one; the last such batch is lost; a first row that is too long by
    itself gives an empty batch.
    """
    batches: list[list[int]] = []
    opened: dict[bool, list[int]] = {True: [], False: []}  # with a prompt, without
    longest: dict[bool, tuple[int, float]] = {True: (0, 0.0), False: (0, 0.0)}
    for i, (T, L, P) in enumerate(zip(frames, answer_tokens, prompt_tokens, strict=True)):
        prompted = P > 0
        new = (T, T / FRAMES_PER_POSITION + L + P)
        longest[prompted] = (max(longest[prompted][0], T), max(longest[prompted][1], new[1]))
        count = len(opened[prompted]) + 1
        # The quirk: without a prompt, frames are those of the batch of rows with one.
        too_many = longest[True][0] * count > max_frames
        if too_many or longest[prompted][1] * count > max_sequence:
            batches.append(opened[prompted])
            opened[prompted], longest[prompted] = [i], new
        else:
            opened[prompted].append(i)
    return [*batches, opened[True]] if opened[True] else batches


def pad_batch(rows: Sequence[Mapping[str, Any]], vector_width: int = 1024) -> dict[str, Any]:
    """One padded batch as upstream's model takes it, longest row first.

    Args:
      rows: of each row `key`, `features` float32[T, F], `answer` and `prompt` ids, `vectors`
        float32[E, W] and `samples`.
      vector_width: width to which vectors are padded with zeros on the right.

    Returns:
      keys, feats float32[B, T, F] (padded with 0), target int64[B, L] (-100), prompt int64[B, P]
      (-1; absent when the first given row has none), ssl_vecs float32[B, E, vector_width],
      and the int32[B] feats_lengths, target_lengths, prompt_lengths, pcm_length.

    Raises:
      UserError: no rows, or vectors wider than `vector_width`.
    """
    if not rows:
        raise UserError("a batch without rows can't be padded: leave the row out that was too long")
    lengths = [len(row["features"]) for row in rows]
    rows_in_order = [rows[i] for i in sorted(range(len(rows)), key=lambda i: -lengths[i])]

    def padded(name: str, value: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        parts = [np.asarray(row[name], dtype) for row in rows_in_order]
        counts = np.array([len(part) for part in parts], np.int32)
        full = np.full((len(parts), max(counts), *parts[0].shape[1:]), value, dtype)
        for target, part in zip(full, parts, strict=True):
            target[: len(part)] = part
        return full, counts

    batch: dict[str, Any] = {"keys": [row["key"] for row in rows_in_order]}
    batch["feats"], batch["feats_lengths"] = padded("features", 0, np.float32)
    batch["target"], batch["target_lengths"] = padded("answer", ANSWER_PADDING, np.int64)
    vectors, _ = padded("vectors", 0, np.float32)
    room = vector_width - vectors.shape[2]
    if room < 0:
        raise UserError(
            f"emotion vectors are {vectors.shape[2]} wide, more than {vector_width}: they can be "
            "padded but not cut"
        )
    batch["ssl_vecs"] = np.pad(vectors, ((0, 0), (0, 0), (0, room)))
    batch["pcm_length"] = np.array([row["samples"] for row in rows_in_order], np.int32)
    if len(rows[0]["prompt"]):
        batch["prompt"], batch["prompt_lengths"] = padded("prompt", PROMPT_PADDING, np.int64)
    return batch
