"""What the language model learns to answer: explicit chains of thought, and short answers.

An explicit answer states the speaking style, the words and a reason, and ends with exactly the
short answer:

    the speech is fast, high-pitched and loud. the words are "oh no". a fast, loud voice and such
    words point to fear. the emotion is<fearful>.

`python -m c2ser_jax.data.cot_text --manifest LIST --output cot.jsonl` writes them for people to
read and correct. Texts are normalised as the released model's were.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax.data.emotion_words import label_noun, label_word
from c2ser_jax.data.files import write_text
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.prompts import Language, answer_language
from c2ser_jax.data.published_text import normalize_text
from c2ser_jax.data.speaking_style import (
    ATTRIBUTES,
    LEVELS,
    Level,
    Style,
    StyleBounds,
    measure_style,
)
from c2ser_jax.errors import UserError, run_command

STYLE_WORDS: dict[Language, dict[str, tuple[str, str, str]]] = {
    "en": {
        "rate": ("slow", "moderate", "fast"),
        "pitch": ("low-pitched", "medium-pitched", "high-pitched"),
        "loudness": ("quiet", "normal", "loud"),
    },
    "zh": {
        "rate": ("语速慢", "语速中等", "语速快"),
        "pitch": ("音调低", "音调中等", "音调高"),
        "loudness": ("音量小", "音量中等", "音量大"),
    },
}
"""Words of (low, middle, high); none of them occurs for another attribute."""


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
        return {n: style_word(n, level, self.language) for n, level in self.levels().items()}


def implicit_answer(label: str, language: str | None) -> str:
    """The short answer that names a label."""
    chosen = answer_language(language)
    word = label_word(label, chosen)
    return normalize_text(f"the emotion is <{word}>." if chosen == "en" else f"情感是<{word}>。")


def explicit_answer(
    label: str,
    language: str | None,
    transcript: str,
    levels: Mapping[str, Level | None],
    rationale: str = "",
) -> str:
    """The answer that reasons first; style words that are not known are left out.

    `rationale` None or empty: one made of label and style.

    Raises:
      UserError: the transcript is empty.
    """
    chosen = answer_language(language)
    said = " ".join(transcript.split())
    if not said:
        raise UserError("an explicit answer quotes the words, and the transcript is empty")
    said = said.replace('"', "'").replace("「", "『").replace("」", "』")
    reason = " ".join(rationale.split()) or default_rationale(label, chosen, levels)
    words = [w for name in ATTRIBUTES if (w := style_word(name, levels.get(name), chosen))]
    if chosen == "en":
        style = f"the speech is {_enumerate(words)}. " if words else ""
        text = f'{style}the words are "{said}". {_ended(reason, ".")} '
    else:
        style = "，".join(words) + "。" if words else ""
        text = f"{style}内容是「{said}」。{_ended(reason, '。')}"
    return normalize_text(text) + implicit_answer(label, chosen)


def default_rationale(label: str, language: Language, levels: Mapping[str, Level | None]) -> str:
    """A sentence that names the emotion and what in the voice stands out."""
    noun = label_noun(label, language)
    telling = [
        w for name in ATTRIBUTES if levels.get(name) not in (None, "middle")
        and (w := style_word(name, levels.get(name), language))
    ]  # fmt: skip
    if language == "zh":
        return f"{'、'.join(telling) or '平常的声音'}和这样的内容说明{noun}。"
    voice = f"a {', '.join(telling)} voice" if telling else "an even voice"
    return f"{voice} and such words point to {noun}."


def style_word(attribute: str, level: str | None, language: Language) -> str | None:
    """The word for an attribute's level; None for none."""
    return None if level is None else STYLE_WORDS[language][attribute][LEVELS.index(level)]  # type: ignore[arg-type]


def cot_texts(
    utterances: Sequence[Utterance],
    load: Callable[[int], np.ndarray],
    *,
    training: Collection[str] | None = None,
    bounds: StyleBounds | None = None,
) -> tuple[list[CotText], StyleBounds, list[tuple[Utterance, str]]]:
    """Makes the answers of labelled utterances.

    `load(place)` gives the audio float32[N]; it is only called where a row doesn't name its levels
    itself (`extra` rate, pitch and loudness: low, middle or high). A row's own `extra["rationale"]`
    is taken. `training` holds the ids whose measures make the bounds (None: all), unless `bounds`
    are given.

    Returns:
      (texts in order, bounds, [(utterance, why it has no text)]).
    """
    styles: dict[int, Style] = {}
    left_out: dict[int, str] = {}
    for place, row in enumerate(utterances):
        if row.label is None:
            left_out[place] = "it has no label"
        elif not (row.text or "").strip():
            left_out[place] = "its transcript is empty; give `text`, which explicit answers quote"
        elif _named_levels(row) is None:
            try:
                styles[place] = measure_style(load(place), row.text)
            except UserError as error:
                left_out[place] = str(error)
    if bounds is None:
        heard = [p for p in styles if training is None or utterances[p].id in training]
        bounds = StyleBounds.of([styles[p] for p in heard], [utterances[p].speaker for p in heard])
    texts = []
    for place, row in enumerate(utterances):
        if place in left_out:
            continue
        levels = _named_levels(row) or bounds.levels(styles[place], row.speaker)
        texts.append(make_text(row, levels))
    return texts, bounds, [(utterances[place], why) for place, why in left_out.items()]


def make_text(
    row: Utterance, levels: Mapping[str, Level | None], rationale: str | None = None
) -> CotText:
    """The answers of one row with a label and a transcript. Raises `UserError` without them."""
    if row.label is None:
        raise UserError(f"{row.id} has no label, which its answers name")
    given = row.extra.get("rationale")
    reason = rationale or (given if isinstance(given, str) else "")
    language, said = answer_language(row.language), " ".join((row.text or "").split())
    reason = reason or default_rationale(row.label, language, levels)
    return CotText(
        id=row.id,
        language=language,
        label=row.label,
        transcript=said,
        explicit=explicit_answer(row.label, language, said, levels, reason),
        implicit=implicit_answer(row.label, language),
        rate=levels.get("rate"),
        pitch=levels.get("pitch"),
        loudness=levels.get("loudness"),
        rationale=reason,
    )


def write_cot_texts(path: str | os.PathLike[str], texts: Sequence[CotText]) -> None:
    """Writes one JSON object a line, atomically."""
    lines = [json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in texts]
    write_text(Path(path), "".join(lines))


def read_cot_texts(path: str | os.PathLike[str]) -> list[CotText]:
    """Reads what `write_cot_texts` wrote and people corrected.

    An `explicit` or `implicit` that was taken out is made of the row's other fields.

    Raises:
      UserError: no such file, or a row that holds something else, named by its line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of answers {path}; write one with data.cot_text")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            rows.append(_read_row(line, f"{path} line {number}"))
    return rows


def _read_row(line: str, where: str) -> CotText:
    try:
        values: Any = json.loads(line)
        row = {f.name: values[f.name] for f in dataclasses.fields(CotText) if f.name in values}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is no JSON object ({error}); mend or remove the line") from error
    for name in ("id", "label", "transcript"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise UserError(f"{where} lacks {name}; every row of answers has id, label, transcript")
    levels = {name: row.get(name) for name in ATTRIBUTES}
    for name, level in levels.items():
        if level not in (None, *LEVELS):
            raise UserError(f"{where}: {name} is {level!r}; use {', '.join(LEVELS)} or null")
    language = answer_language(row.get("language"))
    label, said, reason = row["label"], row["transcript"], row.get("rationale") or ""
    made = {
        "explicit": row.get("explicit") or explicit_answer(label, language, said, levels, reason),
        "implicit": row.get("implicit") or implicit_answer(label, language),
    }
    return CotText(**{**row, **made, "language": language})


def _named_levels(row: Utterance) -> dict[str, Level | None] | None:
    """The levels that a row states itself, None when it lacks one."""
    found = {name: row.extra.get(name) for name in ATTRIBUTES}
    return found if all(level in LEVELS for level in found.values()) else None


def _enumerate(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _ended(sentence: str, mark: str) -> str:
    return sentence if sentence.rstrip()[-1:] in ".!?。！？" else sentence.rstrip() + mark


def build_parser() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m c2ser_jax.data.cot_text",
        description="Writes explicit and implicit answers for a labelled list with transcripts, "
        "one JSON object a line, for people to read and correct before training.",
        epilog="Exit code 0: all rows have answers; 1: some have none (they are listed); 2: wrong "
        "usage.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--manifest", nargs="+", required=True, metavar="LIST", help="labelled utterances")
    add("--root", metavar="DIR", help="where the manifest's relative paths start")
    add("--output", required=True, type=Path, metavar="FILE", help="jsonl to write")
    add("--bounds", type=Path, metavar="FILE",
        help="bounds of the style words; read when it exists, else written")  # fmt: skip
    add("--rationale-model", metavar="DIR", help="a converted Qwen2 that writes the rationales")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Reads, measures, writes; returns the exit code."""
    from c2ser_jax.data.audio import BadAudio, read_audio
    from c2ser_jax.data.manifest import read_manifest

    arguments = build_parser().parse_args(argv)
    rows = read_manifest(arguments.manifest, root=arguments.root)

    def load(place: int) -> np.ndarray:
        row = rows[place]
        try:
            return read_audio(
                row.path, start_seconds=row.start, end_seconds=row.end, channel=row.channel
            )
        except BadAudio as error:
            raise UserError(str(error)) from None

    file: Path | None = arguments.bounds
    given = StyleBounds.load(file) if file is not None and file.exists() else None
    texts, bounds, left_out = cot_texts(rows, load, bounds=given)
    if arguments.rationale_model:
        from c2ser_jax.rationales import with_rationales

        texts = with_rationales(texts, arguments.rationale_model)
    if file is not None and given is None:
        bounds.save(file)
    write_cot_texts(arguments.output, texts)
    for row, why in left_out:
        print(f"left out {row.id}: {why}")
    print(f"{arguments.output}: answers of {len(texts)} of {len(rows)} utterances")
    return 1 if left_out else 0


if __name__ == "__main__":
    run_command(main)
