"""Any corpus in EmoBox's layout: fold lists and a label map, with the audio in a folder beside.

Ma et al., "EmoBox: Multilingual Multi-corpus Speech Emotion Recognition Toolkit and Benchmark",
Interspeech 2024. Its traps are handled: EmoDB's map says `Neutral` where the lists say `neutral`,
boredom is `boredem`, EMOVO's map is `label_dict.json`, EmoDB has every list twice.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath

from c2ser_jax.data.corpora import cremad, emodb, ravdess, savee, turevdb, urdu
from c2ser_jax.data.corpora.corpus import Prepared, at
from c2ser_jax.data.labels import canonical_label
from c2ser_jax.data.manifest import Utterance, audio_files, read_manifest
from c2ser_jax.errors import UserError

LANGUAGES = {
    "aesdd": "el",
    "casia": "zh",
    "cremad": "en",
    "emodb": "de",
    "emovo": "it",
    "mesd": "es",
    "ravdess": "en",
    "savee": "en",
    "tess": "en",
    "turevdb": "tr",
    "urdu": "ur",
}
_PARSERS = {c.CORPUS.name: c.parse for c in (cremad, emodb, ravdess, savee, turevdb, urdu)}
_LIST = re.compile(r".+_(train|test|valid)_fold_?(\d+)\.jsonl")


def _aesdd_speaker(path: PurePath) -> str | None:
    match = re.search(r"\((\d+)\)", path.stem)  # "a03 (5)b": the fifth actor
    return None if match is None else str(int(match.group(1)))


# Corpora without a preparer of their own: the speaker from the place in the corpus.
_SPEAKERS: dict[str, Callable[[PurePath], str | None]] = {
    "aesdd": _aesdd_speaker,
    "casia": lambda path: path.parts[2] if len(path.parts) > 4 else None,
    "emovo": lambda path: path.parent.name,
    "tess": lambda path: path.stem.split("_")[0],
}


def fold_lists(folder: str | Path) -> dict[int, dict[str, Path]]:
    """Returns {fold: {"train": list, "test": list, ...}} of an EmoBox set's folder.

    Of twins (`..._fold_1.jsonl`, `..._fold1.jsonl`) the first spelling counts. `UserError` when
    there is no list.
    """
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(Path(folder).glob("fold_*/*.jsonl"), key=lambda p: (p.parent, p.name)):
        match = _LIST.fullmatch(path.name)
        if match is None:
            continue
        part, fold = match.group(1), int(match.group(2))
        lists = found.setdefault(fold, {})
        if part not in lists or path.stem.endswith(f"_fold_{fold}"):
            lists[part] = path
    if not found:
        raise UserError(
            f"{folder}: no EmoBox lists here; expected fold_1/<set>_train_fold_1.jsonl and so on"
        )
    return dict(sorted(found.items()))


def label_map(folder: str | Path) -> dict[str, str]:
    """Returns {label in the lists, lower case: word of `labels.VOCABULARY`}."""
    paths = [Path(folder) / name for name in ("label_map.json", "label_dict.json")]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        raise UserError(f"{folder}: neither label_map.json nor label_dict.json is here")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); mend the file") from None
    mapped = {}
    for own, name in names.items():
        word = canonical_label(str(name))
        if word is None:
            raise UserError(f"{path}: {name!r} for {own!r} is not an emotion word known here")
        mapped[own.lower()] = word
    return mapped


def listed(folder: str | Path) -> list[Utterance]:
    """Returns all utterances of a set's lists, labels in our words, paths as EmoBox gives them."""
    folder = Path(folder)
    names = label_map(folder)
    rows: dict[str, Utterance] = {}
    for lists in fold_lists(folder).values():
        for path in lists.values():
            for row in read_manifest(path, root=path.parent):
                rows.setdefault(row.id, at(row, Path(os.path.relpath(row.path, path.parent))))
    result = []
    for key in sorted(rows):
        row = rows[key]
        code = row.label or ""
        if code.lower() not in names:
            raise UserError(f"{folder}: the label {code!r} of {key!r} is not in the label map")
        corpus = row.corpus or folder.name
        path = PurePath(row.path)
        parsed = _PARSERS[corpus](path) if corpus in _PARSERS else None
        speaker = _SPEAKERS[corpus](path) if corpus in _SPEAKERS else None
        extra = {"code": code} | ({} if row.channel is None else {"channel": row.channel})
        result.append(
            Utterance(
                key,
                path.as_posix(),
                row.start,
                row.end,
                label=names[code.lower()],
                speaker=parsed.speaker if parsed else speaker,
                language=LANGUAGES.get(corpus),
                corpus=corpus,
                text=parsed.text if parsed else None,
                extra=extra,
            )
        )
    return result


def prepare_emobox(root: str | Path, lists: str | Path) -> Prepared:
    """Joins a set's lists with its audio below `root`.

    A file is found at the path the list gives, at the same path without `downloads/<set>`, or
    anywhere below by its name without ending (if that is unique). Listed files that are not there
    come back as `foreign`; `UserError` when none is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the one that holds the audio")
    rows = listed(lists)
    by_name: dict[str, list[Path]] = {}
    for path in audio_files(root):
        by_name.setdefault(path.stem, []).append(path)
    found, missing = [], []
    for row in rows:
        path = PurePath(row.path)
        same_name = by_name.get(path.stem, [])
        tries = [root / path, root.joinpath(*path.parts[2:]), *same_name[: len(same_name) == 1]]
        place = next((p for p in tries if p.exists()), None)
        if place is None:
            missing.append(row.path)
        else:
            found.append(at(row, place))
    if not found:
        raise UserError(
            f"{root}: none of the {len(rows)} listed files is here, such as {rows[0].path}; "
            "give the folder of the set's audio"
        )
    return Prepared(found, missing)
