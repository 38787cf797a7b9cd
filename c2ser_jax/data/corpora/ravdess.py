"""RAVDESS (English, 24 actors): seven fields, e.g. 03-01-05-01-02-01-18.

Modality, vocal channel, emotion, intensity, statement, repetition, actor. Livingstone and Russo,
"The Ryerson Audio-Visual Database of Emotional Speech and Song", PLoS ONE 13(5), 2018. Songs
(vocal channel 02) are left out.
"""

import re
from pathlib import PurePath

from c2ser_jax.data.corpora.corpus import Corpus
from c2ser_jax.data.labels import CORPUS_CODES
from c2ser_jax.data.manifest import Utterance

_NAME = re.compile(r"0[13]-01-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}


def parse(path: PurePath) -> Utterance | None:
    """Speaker (actor), statement and emotion from a name of seven numbers."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    code, intensity, statement, _, actor = match.groups()
    return Utterance(
        path.stem,
        str(path),
        label=CORPUS_CODES["ravdess"][code],
        speaker=actor,
        language="en",
        corpus="ravdess",
        text=STATEMENTS[statement],
        extra={
            "code": code,
            "intensity": "strong" if intensity == "02" else "normal",
            "sex": "m" if int(actor) % 2 else "f",
        },
    )


CORPUS = Corpus("ravdess", "RAVDESS speech", 1440, parse)
