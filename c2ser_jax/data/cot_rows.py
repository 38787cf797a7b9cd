"""Rows of answers as files that people read and correct: one JSON object a line."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2ser_jax.data.answer_templates import explicit_answer, implicit_answer, style_word
from c2ser_jax.data.emotion_statements import stated_emotion
from c2ser_jax.data.files import TEXT, write_text
from c2ser_jax.data.prompts import Language, answer_language, check_language
from c2ser_jax.data.published_text import normalize_text
from c2ser_jax.data.speaking_style import ATTRIBUTES, LEVELS, Level
from c2ser_jax.errors import UserError


@dataclass(frozen=True)
class CotText:
    """The answers of one utterance, and what they were made of.

    `rate`, `pitch`, `loudness` are "low", "middle", "high" or None; `language` is that of the
    answers. A `rationale` is one or two sentences.
    """

    id: str
    language: Language
    label: str
    transcript: str
    explicit: str
    implicit: str
    rate: Level | None = None
    pitch: Level | None = None
    loudness: Level | None = None
    rationale: str = ""

    def levels(self) -> dict[str, Level | None]:
        """{attribute: level}."""
        return {"rate": self.rate, "pitch": self.pitch, "loudness": self.loudness}

    def style_words(self) -> dict[str, str | None]:
        """{attribute: its word in the answers' language}."""
        return {name: style_word(name, level, self.language)
                for name, level in self.levels().items()}  # fmt: skip


def write_cot_texts(path: str | os.PathLike[str], texts: Sequence[CotText]) -> None:
    """Writes one JSON object a line, atomically."""
    lines = [json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in texts]
    write_text(Path(path), "".join(lines))


def read_cot_texts(path: str | os.PathLike[str]) -> list[CotText]:
    """Reads what `write_cot_texts` wrote and people corrected.

    An `explicit` or `implicit` that was taken out is made of the row's other fields; what stands
    there is normalised as all texts are.

    Raises:
      UserError: no such file, a row that holds something else or contradicts itself, named by its
        line, or an id that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no file of answers {path}; write one with python -m c2ser_jax.data.cot_text"
        )
    lines: dict[str, int] = {}
    rows = []
    for number, line in enumerate(path.read_text(**TEXT).split("\n"), 1):
        if not line.strip():
            continue
        row = _read_row(line, f"{path} line {number}")
        first = lines.setdefault(row.id, number)
        if first != number:
            raise UserError(
                f"{path}: the id {row.id!r} occurs in lines {first} and {number}; remove one"
            )
        rows.append(row)
    return rows


def _read_row(line: str, where: str) -> CotText:
    try:
        values: Any = json.loads(line)
        row = {f.name: values[f.name] for f in dataclasses.fields(CotText) if f.name in values}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is no JSON object ({error}); mend or remove the line") from error
    for name in ("id", "label", "transcript"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UserError(f"{where} lacks {name}; every row of answers has id, label, transcript")
    for name in ("explicit", "implicit", "rationale", "language"):
        if not isinstance(row.get(name) or "", str):
            raise UserError(f"{where}: {name} is {row[name]!r}; give a text or leave it out")
    levels = {name: row.get(name) for name in ATTRIBUTES}
    for name, level in levels.items():
        if level not in (None, *LEVELS):
            raise UserError(f"{where}: {name} is {level!r}; use {', '.join(LEVELS)} or null")
    label, said, reason = row["label"], row["transcript"], row.get("rationale") or ""
    try:
        check_language(row.get("language"))
        language = answer_language(row.get("language"))
        made = {
            name: normalize_text(row.get(name) or make)
            for name, make in (
                ("explicit", explicit_answer(label, language, said, levels, reason)),
                ("implicit", implicit_answer(label, language)),
            )
        }
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    _check_answers(made["explicit"], made["implicit"], label, where)
    return CotText(**{**row, **made, "language": language, "rationale": reason})


def _check_answers(explicit: str, implicit: str, label: str, where: str) -> None:
    """Raises `UserError` for answers that don't name the label, or don't end alike."""
    named = stated_emotion(implicit, [label.strip().strip("<>").lower()])
    if named != label.strip().strip("<>").lower():
        raise UserError(
            f"{where}: the label is {label!r}, and the implicit answer {implicit!r} names "
            f"{named or 'none'}; correct one of them, or remove implicit and explicit to have them "
            "made again"
        )
    if not explicit.endswith(implicit):
        raise UserError(
            f"{where}: the explicit answer does not end with the implicit one, {implicit!r}; let "
            "it, or remove explicit to have it made again"
        )
