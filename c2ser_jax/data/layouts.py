"""The layouts that `read_manifest` understands, each a small parser from text to utterances."""

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from c2ser_jax.data.manifest import AUDIO_SUFFIXES, Utterance, audio_files
from c2ser_jax.data.published_list import is_published_row, standard_row
from c2ser_jax.errors import UserError

ACCEPTED = (
    "accepted are jsonl or json rows with a path (path, wav, audio, file), CSV with such a column, "
    "wav.scp lines 'id path', fairseq tsv, a list of paths, a folder, or an audio file"
)

# Field of Utterance <- names in use. C2SER data.list: key wav txt emotion speaker lang;
# Emo-Emilia: index wav emotion text; EmoBox: key wav|audio emo|label; FunASR: key source.
_NAMES = {
    "id": ("id", "key", "index", "utt", "utt_id", "utterance_id", "uttid"),
    "path": ("path", "wav", "audio", "audio_file", "file", "audio_path", "wav_path", "filepath")
    + ("file_path", "source", "filename", "file_name"),
    "label": ("label", "emotion", "emo", "emotion_label"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "actor"),
    "language": ("language", "lang"),
    "corpus": ("corpus", "dataset"),
    "text": ("text", "txt", "transcript", "transcription", "sentence", "raw_text"),
    "start": ("start", "start_time", "start_seconds"),
    "end": ("end", "end_time", "end_seconds"),
}


def read_source(source: Path, root: Path | None) -> list[Utterance]:
    """Reads one list, folder or audio file; see `read_manifest`."""
    if root is not None and not source.exists() and (root / source).exists():
        source = root / source
    if source.is_dir():
        return _folder(source)
    if source.suffix.lower() in AUDIO_SUFFIXES:  # also when missing: it becomes a bad row later
        return [Utterance(source.stem, str(source))]
    if not source.exists():
        raise UserError(f"{source}: there is no such list, folder or audio file")
    find = _Finder(source.parent, root)
    lines = _text(source).splitlines()
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UserError(f"{source}: the list is empty; it needs one utterance per line")
    stripped = first.strip()
    if stripped[0] == "[" or (stripped[0] == "{" and not _is_jsonl(lines)):
        rows = _json_rows(source, "\n".join(lines))
    elif stripped[0] == "{":
        rows = _jsonl_rows(source, lines)
    elif (table := _table_rows(source, lines)) is not None:
        rows = table
    elif _is_fairseq(first, lines, source):
        return _fairseq(source, lines, root)
    else:
        return _paths(source, lines, find)
    return _name_by_path([_utterance(row, where, find) for where, row in rows])


_EMILIA_ID = re.compile(r"(ZH|EN|JA|FR|DE|KO)_B\d+_S\d+_W\d+")
"""Ids of the Emilia corpus, and so of Emo-Emilia, begin with the language."""


class _Finder:
    """Looks relative paths up under the root, then beside the list.

    The root may also be a folder further down, the one with the files at last: then the first
    folders of a path are left out.
    """

    def __init__(self, folder: Path, root: Path | None):
        self._root, self._bases = root, [base for base in (root, folder) if base is not None]

    def __call__(self, path: str) -> str:
        if os.path.isabs(path):
            return path
        tries = [os.path.normpath(os.path.join(base, path)) for base in self._bases]
        if self._root is not None:
            parts = Path(path).parts
            tries += [str(self._root.joinpath(*parts[n:])) for n in range(1, len(parts))]
        return next((full for full in tries if os.path.exists(full)), tries[0])


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{source}: not a text file in UTF-8; {ACCEPTED}") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def _is_jsonl(lines: list[str]) -> bool:
    """Whether every line starts an object: a JSON file with line breaks does not."""
    return all(line.lstrip().startswith("{") for line in lines if line.strip())


def _jsonl_rows(source: Path, lines: list[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON ({error}); mend the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: every line must be an object {{...}}, got {line[:40]!r}")
        if number == 1 and len(lines) == 1 and row and all(_is_row(v) for v in row.values()):
            yield from ((f"{source}, {key!r}", {"id": key, **value}) for key, value in row.items())
            return
        yield where, row


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and any(name in value for name in _NAMES["path"])


def _json_rows(source: Path, text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """A JSON list of rows, or EmoBox's older object {key: row}."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: not valid JSON ({error}); mend the file") from None
    if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
        return [(f"{source}, {key!r}", {"id": key, **row}) for key, row in content.items()]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return [(f"{source}, row {i}", row) for i, row in enumerate(content, 1)]
    raise UserError(f"{source}: the JSON is neither a list of rows nor an object of rows")


def _table_rows(source: Path, lines: list[str]) -> list[tuple[str, dict[str, Any]]] | None:
    """CSV or TSV whose header names a path column; None when the first line is no such header."""
    for delimiter in (",", "\t", ";", "|"):
        reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        if not any(name.lower() in _NAMES["path"] for name in header):
            continue
        rows = []
        for cells in reader:
            if not any(cells):
                continue
            where = f"{source}, line {reader.line_num}"
            if len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells, but the header names {len(header)} columns"
                )
            pairs = zip(header, (cell.strip() for cell in cells), strict=True)
            rows.append((where, {name.lower(): cell for name, cell in pairs if cell}))
        return rows
    return None


def _utterance(row: dict[str, Any], where: str, find: _Finder) -> Utterance:
    values: dict[str, Any] = {}
    rest = standard_row(row) if is_published_row(row) else dict(row)
    for field, names in _NAMES.items():
        name = next((n for n in names if rest.get(n) not in (None, "")), None)
        if name is not None:
            values[field] = rest.pop(name)
    path = values.get("path")
    if not isinstance(path, str):
        known = ", ".join(_NAMES["path"])
        raise UserError(f"{where}: no path of the audio; name it in one of the fields {known}")
    for name in ("start", "end"):
        if name in values:
            values[name] = _seconds(values[name], name, where)
    for name in ("id", "label", "speaker", "language", "corpus", "text"):
        if name in values:
            values[name] = str(values[name]).strip()
    extra = rest.pop("extra", None) or {}
    if not isinstance(extra, dict):
        raise UserError(f"{where}: the field 'extra' must be an object, got {extra!r}")
    if rest.get("channel") is not None and not str(rest["channel"]).isdecimal():
        raise UserError(f"{where}: channel must be a whole number from 1, got {rest['channel']!r}")
    values["path"] = find(path)
    if isinstance(vectors := extra.get("emotion_vectors"), str):
        extra = {**extra, "emotion_vectors": find(vectors)}
    values.setdefault("id", "")
    if "language" not in values and (found := _EMILIA_ID.fullmatch(values["id"])):
        values["language"] = found[1].lower()
    return Utterance(**values, extra={**rest, **extra})


def _seconds(value: Any, name: str, where: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{where}: {name} must be seconds from 0 on, got {value!r}")
    return seconds


def _is_fairseq(first: str, lines: list[str], source: Path) -> bool:
    rows = [line.split("\t") for line in lines[1:4] if line.strip()]
    counted = all(len(row) == 2 and row[1].strip().isdecimal() for row in rows)
    return "\t" not in first and bool(rows) and counted and source.suffix.lower() == ".tsv"


def _fairseq(source: Path, lines: list[str], root: Path | None) -> list[Utterance]:
    """First line: the folder; then 'relative path <tab> samples'."""
    find = _Finder(Path(lines[0].strip()), root)
    paths = [line.split("\t")[0] for line in lines[1:] if line.strip()]
    return _name_by_path([Utterance("", find(path)) for path in paths])


def _paths(source: Path, lines: list[str], find: _Finder) -> list[Utterance]:
    """Kaldi wav.scp 'id path', or one path per line; most lines decide which."""
    rows = [(n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    for number, text in rows:
        if text.endswith("|"):
            raise UserError(
                f"{source}, line {number}: commands are not run; list the audio files themselves"
            )
    scp = source.suffix.lower() == ".scp" or sum(_is_scp(t, find) for _, t in rows) * 2 > len(rows)
    if not scp:
        if sum(_is_audio(text) for _, text in rows) * 2 <= len(rows):
            raise UserError(f"{source}: {rows[0][1][:60]!r} is not understood; {ACCEPTED}")
        return _name_by_path([Utterance("", find(text)) for _, text in rows])
    utterances = []
    for number, text in rows:
        parts = text.split(maxsplit=1)
        if len(parts) != 2:
            raise UserError(f"{source}, line {number}: {text[:60]!r} must be 'id path'")
        utterances.append(Utterance(parts[0], find(parts[1])))
    return utterances


def _is_scp(text: str, find: _Finder) -> bool:
    head, _, tail = text.replace("\t", " ").partition(" ")
    tail = tail.strip()
    if not tail or "/" in head or _is_audio(head):
        return False
    return (_is_audio(tail) or os.path.exists(find(tail))) and not os.path.exists(find(text))


def _is_audio(text: str) -> bool:
    return text.strip().lower().endswith(AUDIO_SUFFIXES)


def _folder(folder: Path) -> list[Utterance]:
    """All audio below; the id is the path inside the folder, joined with "-", without ending."""
    found = audio_files(folder)
    if not found:
        raise UserError(f"{folder}: no audio file in this folder; {ACCEPTED}")
    inside = [path.relative_to(folder) for path in found]
    ids = ["-".join(path.with_suffix("").parts) for path in inside]
    repeated = {name for name in ids if ids.count(name) > 1} if len(set(ids)) < len(ids) else set()
    return [
        Utterance("-".join(path.parts) if name in repeated else name, str(full))
        for name, path, full in zip(ids, inside, found, strict=True)
    ]


def _name_by_path(utterances: list[Utterance]) -> list[Utterance]:
    """Gives rows without an id the stem of their path, or more of the path where stems repeat."""
    nameless = [i for i, u in enumerate(utterances) if not u.id]
    parts = {i: Path(utterances[i].path).with_suffix("").parts for i in nameless}
    depth = 1
    names = {i: "-".join(p[-depth:]) for i, p in parts.items()}
    while len(set(names.values())) < len(names) and depth < max(map(len, parts.values())):
        depth += 1
        names = {i: "-".join(p.strip("/") for p in parts[i][-depth:]) for i in nameless}
    return [
        u if u.id else dataclasses.replace(u, id=names[i].strip("-"))
        for i, u in enumerate(utterances)
    ]
