"""URDU (talk shows, 38 speakers): name speaker_file_emotion, e.g. SM20_F8_N012.

Latif et al., "Cross Lingual Speech Emotion Recognition: Urdu vs. Western Languages", FIT 2018.
"""

import re
from pathlib import PurePath

from c2ser_jax.data.corpora.corpus import Corpus
from c2ser_jax.data.labels import CORPUS_CODES
from c2ser_jax.data.manifest import Utterance

_NAME = re.compile(r"(S([MF])\d+)_F\d+_([AHNS])\d+")


def parse(path: PurePath) -> Utterance | None:
    """Speaker and emotion from a name such as SM20_F8_N012."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    speaker, sex, code = match.groups()
    return Utterance(
        path.stem,
        str(path),
        label=CORPUS_CODES["urdu"][code.lower()],
        speaker=speaker,
        language="ur",
        corpus="urdu",
        extra={"code": code, "sex": sex.lower()},
    )


CORPUS = Corpus("urdu", "URDU", 400, parse)
