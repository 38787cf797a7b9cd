"""Batches for chain of thought: audio with a prompt and an answer, as token ids of fixed shapes.

Position = step: which rows of a step carry their explicit answer is drawn from (seed, step, row),
with a probability that is a pure function of the step.

Shapes: B rows of this process's share of the batch, P prompt tokens, L answer tokens, K tokens that
a row's two answers may end with alike.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from c2ser_jax.data.audio import SAMPLE_RATE
from c2ser_jax.data.pipeline import DataConfig, TrainingData
from c2ser_jax.data.prompts import answer_language, prompt
from c2ser_jax.data.scanning import Scanned
from c2ser_jax.data.sources import Source
from c2ser_jax.errors import UserError

Prompts = Literal["published", "language"]
TooLong = Literal["refuse", "leave_out"]
MULTIPLE = 8
"""Prompts and answers are padded to a multiple of so many tokens."""

_EXPLICIT = 4  # this draw's number; the waveform's are 0 to 3
_LISTED = 5


class Tokenizer(Protocol):
    """What is asked of a tokenizer: ids of a text, and the id that ends an answer."""

    eos: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones."""
        ...


class Texts(Protocol):
    """What is asked of a row's texts; `data/cot_text.py` makes them."""

    @property
    def language(self) -> str | None:
        """Language of the row."""
        ...

    @property
    def explicit(self) -> str:
        """The answer with its reasoning."""
        ...

    @property
    def implicit(self) -> str:
        """The short answer."""
        ...


@dataclass(frozen=True)
class AnswerConfig:
    """Which answers rows carry, and what to do with rows that are too long.

    `explicit_share_start` and `explicit_share_end` are the probabilities of an explicit answer at
    the first and at the last step, linear between. `prompts`: the "published" English ones, or
    those of the row's "language". Rows whose audio is longer than `batches.max_seconds` or whose
    answer has more than `max_answer_tokens` would lose what their text names; nothing is cut off.
    """

    explicit_share_start: float = 1.0
    explicit_share_end: float = 1.0
    prompts: Prompts = "published"
    max_answer_tokens: int = 200
    too_long: TooLong = "refuse"

    def __post_init__(self):
        for name in ("explicit_share_start", "explicit_share_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}: give a share from 0 to 1")
        if self.max_answer_tokens < 1:
            raise UserError(f"max_answer_tokens is {self.max_answer_tokens}: give at least 1")
        for name, known in (("prompts", Prompts), ("too_long", TooLong)):
            if getattr(self, name) not in get_args(known):
                raise UserError(
                    f"answers.{name} is {getattr(self, name)!r}: use {' or '.join(get_args(known))}"
                )

    def explicit_share(self, step: int, steps: int) -> float:
        """The probability that a row of `step` (from 0 to `steps` - 1) carries its explicit answer.

        Source: C2SER (arXiv 2502.18186), implicit chain of thought by self-distillation.
        """
        start, end = self.explicit_share_start, self.explicit_share_end
        return start + (end - start) * min(step / max(steps - 1, 1), 1.0)

    @property
    def modes(self) -> tuple[str, ...]:
        """The kinds of answers that occur."""
        shares = (self.explicit_share_start, self.explicit_share_end)
        return (("explicit",) if max(shares) > 0 else ()) + (
            ("implicit",) if min(shares) < 1 else ()
        )


def prompts_of(
    answers: AnswerConfig, modes: Iterable[str], languages: Iterable[str]
) -> dict[str, dict[str, str]]:
    """{mode: {language: prompt}} of the answers that rows carry."""
    published = answers.prompts == "published"
    return {
        mode: {language: prompt(mode, language, published=published) for language in languages}
        for mode in modes
    }


class CotData(TrainingData):
    """`TrainingData` whose batches carry prompts and answers.

    `texts` has the texts of every row by its id; `steps` is the number of steps of the stage;
    `distils` adds what a teacher reads; `stage` is the name under which sentences name options.
    Beside the columns of `TrainingData`: prompt int32[B, P], prompt_tokens int32[B] (real ones),
    answer int32[B, L], answer_tokens int32[B] (its ending token counted), explicit bool[B]; with
    `distils` the same of the explicit answer as teacher_prompt … teacher_answer_tokens, and shared
    bool[B, K], True for those of a row's last K tokens that both its answers end with. Empty rows
    have no tokens. `left_out` lists the ids of rows too long, `languages` those that rows are asked
    in.
    """

    def __init__(
        self,
        source: Source,
        labels: Sequence[str] | None,
        cfg: DataConfig,
        answers: AnswerConfig,
        texts: Mapping[str, Texts],
        tokenizer: Tokenizer,
        *,
        steps: int,
        seed: int,
        distils: bool = False,
        stage: str = "",
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.answers, self.steps, self.distils = answers, steps, distils
        self._options = f"{stage}." if stage else ""
        self.left_out: list[str] = []
        modes = ("explicit", "implicit") if distils else answers.modes
        encoded = {
            mode: {u.id: _encode(texts[u.id], mode, tokenizer) for u in source.utterances}
            for mode in modes
        }
        most = answers.max_answer_tokens
        self._wordy = {u.id for u in source.utterances
                       if any(len(found[u.id]) > most for found in encoded.values())}  # fmt: skip
        super().__init__(
            source, labels, cfg, seed=seed, process_index=process_index,
            process_count=process_count,
        )  # fmt: skip
        ids = [row.id for row in self.rows]
        self._answers = {
            mode: _Ragged([found[name] for name in ids]) for mode, found in encoded.items()
        }
        languages = [answer_language(texts[name].language) for name in ids]
        self.languages = sorted(set(languages))
        asked = prompts_of(answers, modes, self.languages)
        self._prompts = {
            mode: _Ragged([tokenizer.encode(found[one]) for one in self.languages])
            for mode, found in asked.items()
        }
        places = [self.languages.index(language) for language in languages]
        self._language = np.array(places, np.int32)
        self._sizes = {
            "prompt": _padded(max(p.longest for p in self._prompts.values())),
            "answer": _padded(max(a.longest for a in self._answers.values())),
        }
        self._endings = self._common_endings() if distils else np.zeros(0, np.int32)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, audio checksums, labels, prompts and answers."""
        digest = hashlib.sha256(super().fingerprint.encode())
        order = sorted(range(len(self.rows)), key=lambda i: self.rows[i].id)
        for mode in sorted(self._answers):
            for row in order:
                digest.update(self._prompts[mode][int(self._language[row])].tobytes())
                digest.update(self._answers[mode][row].tobytes())
        return digest.hexdigest()

    def _select(self, found: Scanned) -> Scanned:
        """Leaves out the rows that are too long, or refuses them."""
        longest = round(self.cfg.max_seconds * SAMPLE_RATE)
        names = [found.source.utterances[i].id for i in found.usable]
        speech = [n for n, scan in zip(names, found.scans, strict=True) if scan.samples > longest]
        most, wordy = self.answers.max_answer_tokens, [n for n in names if n in self._wordy]
        if self.answers.too_long == "refuse":
            limit = f"batches.max_seconds {self.cfg.max_seconds}"
            _refuse(speech, limit, "audio", self._options)
            _refuse(wordy, f"answers.max_answer_tokens {most}", "answer", self._options)
        gone = {*speech, *wordy}
        self.left_out = [name for name in names if name in gone]
        kept = [i for i, name in enumerate(names) if name not in gone]
        if not kept:
            raise UserError(
                f"all {len(names)} rows are longer than {self._options}batches.max_seconds "
                f"{self.cfg.max_seconds} or {self._options}answers.max_answer_tokens {most}; raise "
                "them"
            )
        usable, scans = [found.usable[i] for i in kept], [found.scans[i] for i in kept]
        return replace(found, usable=usable, scans=scans)

    def _assemble(self, bucket: int, rows: np.ndarray, step: int | None) -> dict[str, Any]:
        batch = super()._assemble(bucket, rows, step)
        share = len(rows) // self._processes
        first = self._process * share
        heard = batch["audio_samples"] > 0
        mine = np.where(heard, rows[first : first + share], -1)
        explicit = np.array(
            [self._is_explicit(step, place) for place in range(first, first + share)]
        )
        batch["explicit"] = explicit & heard
        modes = ["explicit" if is_explicit else "implicit" for is_explicit in explicit]
        batch.update(self._columns(mine, modes))
        if self.distils:
            whole = self._columns(mine, ["explicit"] * share)
            batch.update({f"teacher_{name}": column for name, column in whole.items()})
            longest = _padded(int(self._endings.max()))
            counts = np.where(mine >= 0, self._endings[mine], 0)
            batch["shared"] = np.arange(longest)[::-1] < counts[:, None]
        return batch

    def _is_explicit(self, step: int | None, place: int) -> bool:
        """Whether the row at a place of the global batch carries its explicit answer."""
        if step is None:  # evaluation: what the stage ends with
            return self.answers.explicit_share_end >= 0.5
        draw = np.random.default_rng([self.seed, step, place, _EXPLICIT]).random()
        return bool(draw < self.answers.explicit_share(step, self.steps))

    def _columns(self, rows: np.ndarray, modes: Sequence[str]) -> dict[str, np.ndarray]:
        """Padded prompts and answers of data rows int[B], -1 = empty."""
        columns = {}
        for name, size in self._sizes.items():
            values = np.zeros((len(rows), size), np.int32)
            lengths = np.zeros(len(rows), np.int32)
            for i, (row, mode) in enumerate(zip(rows, modes, strict=True)):
                if row < 0:
                    continue
                if name == "prompt":
                    tokens = self._prompts[mode][int(self._language[row])]
                else:
                    tokens = self._answers[mode][int(row)]
                values[i, : len(tokens)], lengths[i] = tokens, len(tokens)
            columns |= {name: values, f"{name}_tokens": lengths}
        return columns

    def _common_endings(self) -> np.ndarray:
        """int32[N]: how many tokens both answers of a row end with alike."""
        explicit, implicit = self._answers["explicit"], self._answers["implicit"]
        counts = np.zeros(len(self.rows), np.int32)
        for row in range(len(self.rows)):
            one, other = explicit[row][::-1], implicit[row][::-1]
            least = min(len(one), len(other))
            differ = np.flatnonzero(one[:least] != other[:least])
            counts[row] = differ[0] if len(differ) else least
        return counts


class _Ragged:
    """Sequences of token ids end to end: `self[i]` is int32[n]."""

    def __init__(self, sequences: Iterable[Sequence[int]]):
        lists = [np.asarray(one, np.int32) for one in sequences]
        self._ends = np.cumsum([0, *map(len, lists)])
        self._values = np.concatenate([np.zeros(0, np.int32), *lists])

    def __getitem__(self, place: int) -> np.ndarray:
        return self._values[self._ends[place] : self._ends[place + 1]]

    @property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return int(np.diff(self._ends).max(initial=0))


def _encode(texts: Texts, mode: str, tokenizer: Tokenizer) -> list[int]:
    text = texts.explicit if mode == "explicit" else texts.implicit
    return [*tokenizer.encode(text), tokenizer.eos]


def _padded(count: int) -> int:
    return max(1, -(-count // MULTIPLE)) * MULTIPLE


def _refuse(names: list[str], limit: str, what: str, options: str) -> None:
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise UserError(
            f"the {what} of {', '.join(names[:_LISTED])}{more} is longer than {options}{limit}; "
            f"raise it, shorten them, or set {options}answers.too_long to leave_out"
        )
