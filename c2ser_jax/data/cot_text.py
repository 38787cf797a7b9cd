"""What the language model learns to answer: explicit chains of thought, and short answers.

`python -m c2ser_jax.data.cot_text --manifest LIST --output cot.jsonl` writes them for people to
read and correct. `data/answer_templates.py` has their sentences.
"""

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from c2ser_jax.data.answer_templates import (
    STYLE_WORDS,
    default_rationale,
    explicit_answer,
    has_words,
    implicit_answer,
    style_word,
)
from c2ser_jax.data.cot_rows import CotText, read_cot_texts, write_cot_texts
from c2ser_jax.data.labels import VOCABULARY, canonical_label, class_index, unknown_label
from c2ser_jax.data.lazy_librosa import load_librosa
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.prompts import answer_language, check_language
from c2ser_jax.data.speaking_style import (
    ATTRIBUTES,
    LEVELS,
    Level,
    Style,
    StyleBounds,
    measure_style,
)
from c2ser_jax.errors import UserError, run_command

__all__ = [
    "STYLE_WORDS",
    "CotText",
    "cot_texts",
    "explicit_answer",
    "implicit_answer",
    "make_text",
    "read_cot_texts",
    "style_word",
    "write_cot_texts",
]


LeftOut = list[tuple[Utterance, str]]


def cot_texts(
    utterances: Sequence[Utterance],
    load: Callable[[int], np.ndarray],
    *,
    training: Collection[str] | None = None,
    bounds: StyleBounds | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[list[CotText], StyleBounds, LeftOut]:
    """Makes the answers of labelled utterances.

    `load(place)` gives the audio float32[N]; it is only called where a row doesn't name its levels
    itself (`extra` rate, pitch and loudness: low, middle or high). A row's own `extra["rationale"]`
    is taken. `training` holds the ids whose measures make the bounds (None: all), unless `bounds`
    are given. `labels`: those that may occur (None: any).

    Rows in a language other than Chinese are answered in English. A row without a label, with an
    unknown one, without words, in a language that nobody knows or with broken audio has no text.

    Returns:
      (texts in order, bounds, [(utterance, why it has no text)]).
    """

    def measure(place: int) -> Style | UserError:
        try:
            return measure_style(load(place), utterances[place].text)
        except UserError as error:
            return error

    styles = {place: measure(place) for place in rows_to_measure(utterances, labels)}
    return texts_of(utterances, styles, training=training, bounds=bounds, labels=labels)


def texts_of(
    utterances: Sequence[Utterance],
    styles: Mapping[int, Style | UserError],
    *,
    training: Collection[str] | None = None,
    bounds: StyleBounds | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[list[CotText], StyleBounds, LeftOut]:
    """`cot_texts` of measured rows: `styles` has those of `rows_to_measure`, by place."""
    heard = {place: style for place, style in styles.items() if isinstance(style, Style)}
    if bounds is None:
        used = [p for p in heard if training is None or utterances[p].id in training]
        bounds = StyleBounds.of([heard[p] for p in used], [utterances[p].speaker for p in used])
    texts, left_out = [], []
    for place, row in enumerate(utterances):
        try:
            check_row(row, labels)
            style = styles.get(place)
            if isinstance(style, UserError):
                raise style
            levels = bounds.levels(style, row.speaker) if style else {}
            texts.append(make_text(row, {**levels, **_named_levels(row)}))
        except UserError as error:
            left_out.append((row, str(error)))
    return texts, bounds, left_out


def rows_to_measure(
    utterances: Sequence[Utterance], labels: Sequence[str] | None = None
) -> list[int]:
    """Places of the rows that can have answers and don't name all their levels."""
    places = []
    for place, row in enumerate(utterances):
        try:
            check_row(row, labels)
        except UserError:
            continue
        if len(_named_levels(row)) < len(ATTRIBUTES):
            places.append(place)
    return places


def check_row(row: Utterance, labels: Sequence[str] | None = None) -> None:
    """Raises `UserError` for a row that no answers can be made of."""
    if row.label is None:
        raise UserError("it has no label")
    if labels is not None and class_index(row.label, labels, corpus=row.corpus) is None:
        raise UserError(unknown_label(row.label, labels))
    if not has_words(row.text):
        own = " (its own `answer` is not what is trained on)" if row.extra.get("answer") else ""
        raise UserError(f"its transcript is empty{own}; give `text`, which explicit answers quote")
    check_language(row.language)


def make_text(
    row: Utterance, levels: Mapping[str, Level | None], rationale: str | None = None
) -> CotText:
    """The answers of one row with a label and a transcript. Raises `UserError` without them."""
    if row.label is None:
        raise UserError(f"{row.id} has no label, which its answers name")
    label = row.label if canonical_label(row.label) else None
    label = label or canonical_label(row.label, corpus=row.corpus) or row.label
    reason = rationale or row_rationale(row)
    language, said = answer_language(row.language), " ".join((row.text or "").split())
    reason = reason or default_rationale(label, language, levels)
    return CotText(
        id=row.id,
        language=language,
        label=label,
        transcript=said,
        explicit=explicit_answer(label, language, said, levels, reason),
        implicit=implicit_answer(label, language),
        rate=levels.get("rate"),
        pitch=levels.get("pitch"),
        loudness=levels.get("loudness"),
        rationale=reason,
    )


def row_rationale(row: Utterance) -> str:
    """The reason that was written for a row elsewhere; empty without one."""
    given = row.extra.get("rationale")
    return given.strip() if isinstance(given, str) else ""


def _named_levels(row: Utterance) -> dict[str, Level | None]:
    """The levels that a row states itself."""
    return {name: level for name in ATTRIBUTES if (level := row.extra.get(name)) in LEVELS}


def measure_row(row: Utterance) -> Style | UserError:
    """Reads and measures one row; the error where its audio can't be used."""
    from c2ser_jax.data.audio import BadAudio, read_audio

    try:
        audio = read_audio(
            row.path, start_seconds=row.start, end_seconds=row.end, channel=row.channel
        )
    except BadAudio as error:
        return UserError(str(error))
    return measure_style(audio, row.text)


def measure_rows(rows: Iterable[Utterance], workers: int) -> Iterator[Style | UserError]:
    """`measure_row` of all rows in order, by so many processes; 0: by this one."""
    if not workers:
        yield from map(measure_row, rows)
        return
    load_librosa()  # here first, so that the pool's processes find it compiled
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=partial(load_librosa, lock=False)
    ) as pool:
        yield from pool.map(measure_row, rows, chunksize=8)


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
    add("--overwrite", action="store_true",
        help="write FILE anew where it exists, corrections and all")  # fmt: skip
    add("--bounds", type=Path, metavar="FILE",
        help="bounds of the style words; read when it exists, else written")  # fmt: skip
    add("--labels", nargs="+", default=(), metavar="LABEL",
        help="labels that may occur beside the known emotion words")  # fmt: skip
    add("--rationale-model", metavar="DIR", help="a converted Qwen2 that writes the rationales")
    add("--rationale-seed", type=int, metavar="N",
        help="draw the rationales' words at random instead of taking the likeliest")  # fmt: skip
    add("--workers", type=int, default=0, metavar="N",
        help="processes that measure the audio (default: none but this one)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Reads, measures, writes; returns the exit code."""
    from c2ser_jax.data.files import check_writable
    from c2ser_jax.data.manifest import read_manifest

    arguments = build_parser().parse_args(argv)
    if arguments.workers < 0:
        raise UserError(f"--workers is {arguments.workers}; give 0 or more")
    if arguments.output.exists() and not arguments.overwrite:
        raise UserError(
            f"{arguments.output} exists and may have been corrected by hand; give another --output "
            "or --overwrite"
        )
    check_writable(arguments.output.absolute().parent)
    if arguments.rationale_model:
        from c2ser_jax.rationales import check_model

        check_model(arguments.rationale_model)  # before anything is measured
    rows = read_manifest(arguments.manifest, root=arguments.root)
    labels = [*VOCABULARY, *arguments.labels]
    file: Path | None = arguments.bounds
    given = StyleBounds.load(file) if file is not None and file.exists() else None
    places = rows_to_measure(rows, labels)
    found = measure_rows([rows[place] for place in places], arguments.workers)
    styles = dict(zip(places, found, strict=True))
    texts, bounds, left_out = texts_of(rows, styles, bounds=given, labels=labels)
    if file is not None and given is None:
        bounds.save(file)
    if arguments.rationale_model:
        texts = _with_rationales(texts, rows, arguments.rationale_model, arguments.rationale_seed)
    write_cot_texts(arguments.output, texts)
    for row, why in left_out:
        print(f"left out {row.id}: {why}")
    print(f"{arguments.output}: answers of {len(texts)} of {len(rows)} utterances")
    return 1 if left_out else 0


def _with_rationales(
    texts: Sequence[CotText], rows: Sequence[Utterance], directory: str, seed: int | None
) -> list[CotText]:
    """Rationales by a language model, where a row has none of its own."""
    from c2ser_jax.rationales import with_rationales

    own = {row.id for row in rows if row_rationale(row)}
    asked = [one for one in texts if one.id not in own]
    written = iter(with_rationales(asked, directory, seed=seed))
    return [one if one.id in own else next(written) for one in texts]


if __name__ == "__main__":
    run_command(main)
