"""Scores a model that answers on a fold's test utterances, in every way that it can be asked."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from c2ser_jax import inference
from c2ser_jax.answering.ask import Answer, Ask
from c2ser_jax.answering.model import SpeechModel
from c2ser_jax.config import RunConfig
from c2ser_jax.corpus import source_of
from c2ser_jax.data.answer_text import parse_answer
from c2ser_jax.data.audio import BadAudio
from c2ser_jax.data.cot_text import CotText, cot_texts, read_cot_texts
from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.speaking_style import ATTRIBUTES, StyleBounds
from c2ser_jax.data.spoken_scenes import CORPUS, ceilings
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.probe_result import FoldResult
from c2ser_jax.evaluation.reasoning import reasoning_scores, reasoning_table
from c2ser_jax.evaluation.report import write_text
from c2ser_jax.extraction.clips import Failure, clips_of
from c2ser_jax.fold_run import FoldRun
from c2ser_jax.scoring import fold_result


def score_answers(context: FoldRun, name: str) -> FoldResult | None:
    """Asks the model that the stage `name` left about the fold's test utterances.

    Answers are written greedily, as long as the stage's answers and the model's context may be.
    `predicted` is the scored label where the stage trains short answers, else the one that is
    likeliest behind the explicit answer's reasoning. Rows also hold `answers`, what was said under
    every condition, and what is true: `language`, `transcript`, `levels`. None without a labelled
    test utterance.

    Raises:
      UserError: the model cannot be asked.
    """
    answers = getattr(context.run, name).answers
    test = [u for u in context.fold.test if u.label is not None]
    if not test:
        return None
    model = inference.load(context.workdir / name / "model")
    assert isinstance(model, SpeechModel)
    texts = _texts(context, model, test)
    asks: dict[str, Ask] = {}
    if "implicit" in answers.modes:
        asks["labels"] = Ask("labels")
        asks["implicit"] = Ask("implicit", decoding="greedy")
        asks["implicit, constrained"] = Ask("implicit", decoding="greedy", constrained=True)
    if "explicit" in answers.modes:
        limit = max(1, min(answers.max_answer_tokens, model.engine.room(Ask("explicit"))))
        asks["explicit"] = Ask("explicit", decoding="greedy", max_new_tokens=limit)
    first = next(iter(asks))
    said: dict[str, dict[str, Any]] = {u.id: {} for u in test}
    chances: dict[str, dict[str, float]] = {}
    for condition, ask in asks.items():
        for utterance, answer in _ask(context, model, test, ask):
            said[utterance.id] |= _said(model, condition, answer)
            if condition == first:
                chances[utterance.id] = answer.probabilities
    rows = []
    for utterance in test:
        if not asks.keys() <= said[utterance.id].keys():
            continue  # it could not be heard, or not every time
        text = texts.get(utterance.id)
        row = {
            "id": utterance.id,
            "fold": context.fold.name,
            "label": utterance.label,
            "predicted": max(chances[utterance.id], key=chances[utterance.id].__getitem__),
            "probabilities": chances[utterance.id],
            "speaker": utterance.speaker,
            "language": utterance.language,
            "transcript": utterance.text,
            "levels": {k: getattr(text, k) if text else None for k in ATTRIBUTES},
            "answers": said[utterance.id],
        }
        rows.append(row)
    return fold_result(context, sorted(rows, key=lambda row: row["id"]))


def tell_answers(run: RunConfig, results: Sequence[FoldResult], folder: Path) -> str:
    """The table of a stage's answers over all folds; writes `answers.json` and `answers.txt`."""
    rows = [row for result in results for row in result.rows]
    classes = list(rows[0]["probabilities"])
    known = ceilings(run.data.spoken_scenes.emotions) if run.data.corpus == CORPUS else None
    scores = reasoning_scores(rows, classes, known)
    table = reasoning_table(scores, judged=run.data.corpus == CORPUS)
    write_text(folder / "answers.json", json.dumps(scores, indent=1) + "\n")
    write_text(folder / "answers.txt", table + "\n")
    return table


def _ask(context: FoldRun, model: SpeechModel, test: Sequence[Utterance], ask: Ask):
    """Yields (utterance, Answer) of those that can be heard."""
    clips = [
        dataclasses.replace(clip, utterance=utterance)  # which knows its language
        for clip, utterance in zip(clips_of(context.source, test), test, strict=True)
    ]
    for place, answer in model.stream(clips, ask):
        if isinstance(answer, Failure):
            if ask.mode == "labels" or test[place].id not in context.lost:
                context.lose(test[place], answer.message)
            continue
        yield test[place], answer


def _said(model: SpeechModel, condition: str, answer: Answer) -> dict[str, dict[str, Any]]:
    """{condition: what was answered}; an explicit answer gives its constrained form, too."""
    if answer.text is None:
        return {condition: {"label": answer.label}}
    parsed = parse_answer(answer.text, model.used_labels)
    found = {condition: {**dataclasses.asdict(parsed), "label": answer.label, "text": answer.text}}
    if condition == "explicit":
        likeliest = max(answer.probabilities, key=answer.probabilities.__getitem__)
        found["explicit, constrained"] = {"label": likeliest}
    return found


def _texts(context: FoldRun, model: SpeechModel, test: Sequence[Utterance]) -> dict[str, CotText]:
    """The true answers by id: those given, or made with the model's style bounds."""
    run = context.run
    if run.data.cot_texts:
        wanted = {u.id for u in test}
        return {one.id: one for one in read_cot_texts(run.data.cot_texts) if one.id in wanted}
    source = source_of(context.source, test)

    def load(place: int) -> np.ndarray:
        try:
            return source.load(place)[0]
        except BadAudio as error:
            raise UserError(str(error)) from error

    bounds = StyleBounds.from_json(model.description.extra.get("style_bounds", {}))
    texts, _, _ = cot_texts(source.utterances, load, bounds=bounds)
    return {one.id: one for one in texts}
