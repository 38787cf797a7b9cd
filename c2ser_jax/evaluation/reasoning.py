"""What answers get right beside the label: style words and transcript. How modes compare. No jax.

A row is one utterance: `id`, `label` (true), `language`, `transcript` and `levels` {attribute: true
level or None}, and `answers` {condition: {"label", and of written ones "named", "text",
"transcript" and the attributes' levels}}. Conditions are "labels" (scoring), "implicit" and
"explicit" (free), and the last two with ", constrained".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from c2ser_jax.data.answer_text import word_errors
from c2ser_jax.data.speaking_style import ATTRIBUTES
from c2ser_jax.evaluation.answers import NONE
from c2ser_jax.evaluation.metrics import classification_metrics, constant_floor
from c2ser_jax.evaluation.report import percent, text_table

Row = Mapping[str, Any]

# What answers about the embedded spoken scenes are expected to reach, as shares.
STYLE_MARGIN = 0.20
"""How far style words lie above their most frequent level."""
MOST_WORD_ERRORS = 0.50
MODE_MARGIN = 0.05
"""How far implicit answers may lie below explicit ones."""
MOST_OUTSIDE = 0.02
"""Written answers without a label of the set."""


def reasoning_scores(
    rows: Sequence[Row], classes: Sequence[str], ceilings: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Scores of all conditions as shares.

    Returns {"num", "floor": accuracy of the best constant label, "ceilings": what is given,
    "conditions": {condition: {"accuracy", "ua", "outside": share of answers that name no label of
    the set, and of explicit ones "styles": {attribute: {"accuracy", "majority": share of its most
    frequent level, "num"}} and "word_error_rate"}}}.
    """
    targets = [row["label"] for row in rows]
    found: dict[str, Any] = {
        "num": len(rows),
        "floor": constant_floor(targets, classes)["wa"],
        "ceilings": dict(ceilings or {}),
        "conditions": {},
    }
    for name in dict.fromkeys(name for row in rows for name in row["answers"]):
        said = [row["answers"][name] for row in rows]
        guesses = [one["label"] or NONE for one in said]
        outside = guesses.count(NONE)
        metrics = classification_metrics(
            targets, guesses, [*classes, NONE] if outside else classes, outside=int(outside > 0)
        )
        found["conditions"][name] = {
            "accuracy": metrics["wa"],
            "ua": metrics["ua"],
            "outside": outside / len(rows),
        }
        if name == "explicit":
            found["conditions"][name] |= {
                "styles": _styles(rows, said),
                "word_error_rate": _word_error_rate(rows, said),
            }
    return found


def reasoning_table(scores: Mapping[str, Any], judged: bool = False) -> str:
    """A line per criterion: what was reached; of `judged` answers also what is expected of them."""
    conditions, lines = scores["conditions"], []

    def line(what: str, value: float, bound: float | None = None, least: bool = True) -> None:
        if bound is None or not judged:
            lines.append([what, percent(value), "", ""])
            return
        reached = value >= bound - 1e-9 if least else value <= bound + 1e-9
        sign = "≥" if least else "≤"
        lines.append([what, percent(value), f"{sign} {percent(bound)}", "yes" if reached else "no"])

    line("always the most frequent label", scores["floor"])
    for cue in ("words", "prosody", "both"):
        if cue in scores["ceilings"]:
            line(f"best possible from {cue} alone" if cue != "both" else "best possible from both",
                 scores["ceilings"][cue])  # fmt: skip
    explicit, implicit = conditions.get("explicit"), conditions.get("implicit")
    if explicit:
        for name, style in explicit["styles"].items():
            if style["num"]:
                bound = min(1.0, style["majority"] + STYLE_MARGIN)
                line(f"explicit: {name} ({percent(style['majority'])} by guessing)",
                     style["accuracy"], bound)  # fmt: skip
        if explicit["word_error_rate"] is not None:
            line("explicit: word error rate", explicit["word_error_rate"], MOST_WORD_ERRORS, False)
        line("explicit: label", explicit["accuracy"])
    if implicit:
        bound = explicit["accuracy"] - MODE_MARGIN if explicit else None
        line("implicit: label", implicit["accuracy"], bound)
    if scored := conditions.get("labels"):
        written = [one["accuracy"] for one in (explicit, implicit) if one]
        line("scored labels", scored["accuracy"], max(written, default=None))
    for name, one in conditions.items():
        most = MOST_OUTSIDE if name in ("explicit", "implicit") else 0.0
        line(f"{name}: no label of the set", one["outside"], most, False)
    if not judged:
        return text_table(["% of test answers", "reached"], [line[:2] for line in lines])
    return text_table(["% of test answers", "reached", "expected", ""], lines)


def _styles(rows: Sequence[Row], said: Sequence[Row]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in ATTRIBUTES:
        pairs = [
            (row["levels"].get(name), one.get(name)) for row, one in zip(rows, said, strict=True)
        ]
        known = [(true, guess) for true, guess in pairs if true is not None]
        count = Counter(true for true, _ in known)
        found[name] = {
            "accuracy": sum(true == guess for true, guess in known) / max(1, len(known)),
            "majority": max(count.values(), default=0) / max(1, len(known)),
            "num": len(known),
        }
    return found


def _word_error_rate(rows: Sequence[Row], said: Sequence[Row]) -> float | None:
    """Errors per word of all transcripts; None where there are none."""
    errors = words = 0
    for row, one in zip(rows, said, strict=True):
        if row["transcript"]:
            more, length = word_errors(row["transcript"], one.get("transcript"), row["language"])
            errors, words = errors + more, words + length
    return errors / words if words else None
