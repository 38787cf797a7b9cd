"""The report of an evaluation of answers as one file: no script, no other file, no network.

Scores are fractions in the data and per cent on the page. All text of models and lists is escaped.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import soundfile

from c2ser_jax.data.audio import SAMPLE_RATE, BadAudio, read_audio
from c2ser_jax.evaluation.report import SHOWN, TITLES, percent, row_name

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2430;max-width:1000px;margin:2rem auto;
padding:0 1rem}
table{border-collapse:collapse;margin:.6rem 0 1.4rem}th,td{padding:.25rem .7rem;text-align:right}
th{border-bottom:1px solid #9ca3af;font-weight:600}td:first-child,th:first-child{text-align:left}
tr+tr td{border-top:1px solid #e5e7eb}.soft{color:#6b7280}.error{border-top:1px solid #e5e7eb;
padding:.6rem 0}.confusion td{text-align:center;min-width:3.2rem}audio{height:2rem;width:20rem}
"""


class AudioClips:
    """Playable audio for a page, as long as there is room; what has no room is left out."""

    def __init__(self, most_bytes: int):
        """At most so many bytes of page in all."""
        self._left = most_bytes

    def player(self, row: Mapping[str, Any]) -> str:
        """An audio element for a row's `path` from `start` to `end`, or why there is none."""
        try:
            audio = read_audio(
                row["path"], start_seconds=row.get("start"), end_seconds=row.get("end"),
                channel=row.get("channel"),
            )  # fmt: skip
        except BadAudio as error:
            return f'<span class="soft">{escape(str(error))}</span>'
        data = _encoded(audio)
        if len(data) > self._left:
            return '<span class="soft">no room for its audio</span>'
        self._left -= len(data)
        return f'<audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio>'


def _encoded(audio: np.ndarray) -> str:
    """MP3 in base64 of float32[N]."""
    memory = io.BytesIO()
    soundfile.write(memory, np.clip(audio, -1, 1), SAMPLE_RATE, format="MP3")
    return base64.b64encode(memory.getvalue()).decode()


def html_report(
    summary: Mapping[str, Any],
    *,
    title: str,
    notes: Iterable[str],
    errors: Sequence[Mapping[str, Any]],
    most_audio_bytes: int,
) -> str:
    """The page of an evaluation's `summary`; `errors` are the rows shown, worst first."""
    clips = AudioClips(most_audio_bytes)
    first = summary["conditions"][summary["mode"]]
    sections = [
        ("Scores", _scores(summary)),
        ("By language", _languages(first)),
        (f"Emotions, mode {summary['mode']}", _classes(first)),
        ("Confusion", confusion_table(first["confusion"], first["classes"])),
        ("Reliability", _reliability(summary, first)),
        ("Written answers", _answers(summary)),
        ("Stability", _stability(summary)),
        ("Time", _times(summary)),
        ("Worst errors", "".join(_error(row, clips) for row in errors)),
        ("Not heard", _bad(summary["bad"])),
    ]
    body = "".join(f"<h2>{escape(name)}</h2>\n{text}\n" for name, text in sections if text)
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n"
        f"<ul>{listed}</ul>\n{body}</body></html>\n"
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """A table of escaped cells."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    lines = [f"<tr>{''.join(f'<td>{escape(str(c))}</td>' for c in row)}</tr>" for row in rows]
    return f'<table class="{kind}"><tr>{head}</tr>{"".join(lines)}</table>'


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Counts with true classes as rows, shaded by their share of the row."""
    lines = []
    for name, counts in zip(classes, confusion, strict=True):
        total = max(1, sum(counts))
        cells = [
            f'<td style="background:rgba(37,99,235,{0.75 * n / total:.2f})">{n or "·"}</td>'
            for n in counts
        ]
        lines.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ("true \\ answered", *classes))
    return f'<table class="confusion"><tr>{head}</tr>{"".join(lines)}</table>'


def reliability_svg(bins: Sequence[Mapping[str, Any]]) -> str:
    """Bars of accuracy over confidence with the diagonal; a bar's strength is its count."""
    side, most = 260, max([one["count"] for one in bins] or [1]) or 1
    parts = []
    for one in (one for one in bins if one["count"]):
        left, width = one["low"] * side, (one["high"] - one["low"]) * side - 1
        height = one["accuracy"] * side
        strength = 0.25 + 0.75 * one["count"] / most
        parts.append(
            f'<rect x="{left:.1f}" y="{side - height:.1f}" width="{width:.1f}" '
            f'height="{max(height, 1):.1f}" fill="#2563eb" fill-opacity="{strength:.2f}">'
            f"<title>{one['count']} answers, confidence {percent(one['confidence'])}, right "
            f"{percent(one['accuracy'])}</title></rect>"
        )
    return (
        f'<svg viewBox="-34 -8 {side + 46} {side + 44}" width="340" role="img" aria-label='
        f'"reliability diagram"><rect width="{side}" height="{side}" fill="none" stroke="#9ca3af"/>'
        f'{"".join(parts)}<path d="M0 {side}L{side} 0" stroke="#d97706" stroke-dasharray="4"/>'
        f'<text x="{side / 2}" y="{side + 28}" text-anchor="middle" font-size="12">'
        "confidence</text>"
        f'<text transform="translate(-14 {side / 2})rotate(-90)" text-anchor="middle" '
        'font-size="12">right</text></svg>'
    )


def _interval(found: Mapping[str, float]) -> str:
    return f"{percent(found['low'])} – {percent(found['high'])}"


def _score_cells(scores: Mapping[str, Any]) -> list[str]:
    cells = []
    for name in SHOWN:
        cells += [percent(scores[name]), _interval(scores["intervals_95"][name])]
    return cells


def _scores(summary: Mapping[str, Any]) -> str:
    header = ["%"]
    for name in SHOWN:
        header += [TITLES[name], "95 %"]
    rows = [
        [row_name(name, one), *_score_cells(one), one["num"]]
        for name, one in summary["conditions"].items()
    ]
    floor = summary["conditions"][summary["mode"]]["constant_floor"]
    constant = [f"always {floor['label']}"]
    for name in SHOWN:
        constant += [percent(floor[name]), ""]
    return html_table([*header, "items"], [*rows, [*constant, ""]])


def _languages(first: Mapping[str, Any]) -> str:
    header = ["%"]
    for name in SHOWN:
        header += [TITLES[name], "95 %"]
    rows = []
    for name, one in first["by_language"].items():
        floor = one["constant_floor"]
        rows.append(
            [name, *_score_cells(one), f"{floor['label']} {percent(floor['wa'])}", one["num"]]
        )
    return html_table([*header, "constant answer, WA", "items"], rows)


def _classes(first: Mapping[str, Any]) -> str:
    rows = []
    for name, one in first["per_class"].items():
        cells: list[str] = []
        for score in ("precision", "recall", "f1"):
            cells += [percent(one[score]), _interval(one["intervals_95"][score])]
        rows.append([name, *cells, one["support"], one["predicted"]])
    header = ["%", "precision", "95 %", "recall", "95 %", "F1", "95 %", "items", "answered"]
    return html_table(header, rows)


def _reliability(summary: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    found = first["calibration"]
    said = (
        f"<p>Expected calibration error {percent(found['error'])} % at temperature "
        f"{found['temperature']:.3f}.</p>"
    )
    if fitted := summary.get("calibration"):
        rows = [
            ["temperature", *(f"{fitted[k]:.3f}" for k in ("temperature_before", "temperature"))]
        ]
        for name, key in (("development", ""), ("test", "test_")):
            cells = [percent(fitted[f"{key}ece_{when}"]) for when in ("before", "after")]
            rows.append([f"{name} ECE %", *cells])
        said += html_table(["fitted on development data", "before", "after"], rows)
    return said + reliability_svg(found["bins"])


def _answers(summary: Mapping[str, Any]) -> str:
    names = {
        "parse_rate": "names an emotion",
        "hallucination_rate": "names one outside the set",
        "valid_rate": "names a label of the set",
    }
    rows = []
    for condition, one in summary["conditions"].items():
        if "answers" in one:
            found = [one["answers"][name] for name in names]
            rows.append([condition, *(f"{percent(f['value'])} ({_interval(f)})" for f in found)])
    return html_table(["% of answers", *names.values()], rows) if rows else ""


def _stability(summary: Mapping[str, Any]) -> str:
    rows = []
    for what, one in summary["stability"].items():
        agreeing, kappa = one["agreement"], one["kappa"]
        rows.append(
            [
                what.replace("_", " "), ", ".join(one["conditions"]),
                f"{percent(agreeing['value'])} ({_interval(agreeing)})",
                f"{kappa['value']:.2f}", percent(one["changed"]["value"]), one["num"],
            ]
        )  # fmt: skip
    header = ["over", "conditions", "agree %", "kappa", "changed %", "items"]
    return html_table(header, rows) if rows else ""


def _times(summary: Mapping[str, Any]) -> str:
    rows = [[name, f"{value:.3f}"] for name, value in summary["seconds_per_clip"].items()]
    return html_table(["condition", "seconds per clip"], rows) if rows else ""


def _error(row: Mapping[str, Any], clips: AudioClips) -> str:
    chances = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])[:3]
    said = ", ".join(f"{escape(name)} {percent(value)}" for name, value in chances)
    lines = [
        f"<b>{escape(row['id'])}</b>: true <b>{escape(row['label'])}</b>, answered "
        f"<b>{escape(row['predicted'] or 'none')}</b> ({said} %)",
        clips.player(row),
    ]
    for name in ("reference", "transcript", "rationale", "text"):
        if row.get(name):
            lines.append(f'<span class="soft">{name}:</span> {escape(str(row[name]))}')
    return f'<div class="error">{"<br>".join(lines)}</div>'


def _bad(bad: Sequence[Mapping[str, Any]]) -> str:
    return html_table(["id", "why"], [[one["id"], one["error"]] for one in bad]) if bad else ""
