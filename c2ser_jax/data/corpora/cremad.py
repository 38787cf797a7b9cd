"""CREMA-D (English, 91 actors): name actor_sentence_emotion_level, e.g. 1001_IEO_HAP_LO.

Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Trans. Affective
Computing 5(4), 2014. The label is the intended emotion. `SentenceFilenames.csv` and
`VideoDemographics.csv` beside the audio tell missing clips, and sex and age.
"""

import csv
import re
from pathlib import Path, PurePath

from c2ser_jax.data.corpora.corpus import Corpus, Prepared, prepare
from c2ser_jax.data.labels import canonical_label
from c2ser_jax.data.manifest import Utterance

SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_LEVELS = {"XX": "unspecified", "X": "unspecified", "LO": "low", "MD": "medium", "HI": "high"}
_NAME = re.compile(r"(1\d{3})_([A-Z]{3})_(ANG|DIS|FEA|HAP|NEU|SAD)_(XX?|LO|MD|HI)")


def parse(path: PurePath) -> Utterance | None:
    """Speaker (actor), sentence, intended emotion and its level."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    actor, sentence, code, level = match.groups()
    return Utterance(
        path.stem,
        str(path),
        label=canonical_label(code),
        speaker=actor,
        language="en",
        corpus="cremad",
        text=SENTENCES.get(sentence),
        extra={"code": code, "sentence": sentence, "intensity": _LEVELS[level]},
    )


CORPUS = Corpus("cremad", "CREMA-D", 7442, parse)


def listed_names(root: str | Path) -> list[str] | None:
    """File names (without ending) of `SentenceFilenames.csv`; None when it is not there."""
    path = Path(root) / "SentenceFilenames.csv"
    if not path.exists():
        return None
    with open(path, encoding="utf-8-sig", newline="") as file:
        return [row["Filename"] for row in csv.DictReader(file)]


def prepare_cremad(root: str | Path) -> Prepared:
    """As `prepare`, with sex and age of the actors when `VideoDemographics.csv` is there."""
    prepared = prepare(CORPUS, root)
    path = Path(root) / "VideoDemographics.csv"
    if not path.exists():
        return prepared
    with open(path, encoding="utf-8-sig", newline="") as file:
        actors = {
            row["ActorID"]: {"sex": row["Sex"][:1].lower(), "age": int(row["Age"])}
            for row in csv.DictReader(file)
        }
    rows = [
        Utterance(**{**vars(row), "extra": {**row.extra, **actors.get(row.speaker or "", {})}})
        for row in prepared.utterances
    ]
    return Prepared(rows, prepared.foreign, prepared.repeated)
