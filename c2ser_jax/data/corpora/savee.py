"""SAVEE (English, 4 male speakers): DC/a01.wav as distributed, DC_a01.wav in most copies.

Jackson and Haq, "Surrey Audio-Visual Expressed Emotion (SAVEE) database", 2014.
"""

import re
from pathlib import PurePath

from c2ser_jax.data.corpora.corpus import Corpus
from c2ser_jax.data.labels import CORPUS_CODES
from c2ser_jax.data.manifest import Utterance

_NAME = re.compile(r"(DC|JE|JK|KL)_(sa|su|[adfhn])(\d\d)")


def parse(path: PurePath) -> Utterance | None:
    """Speaker and emotion from the name, or from the folder and the name."""
    match = _NAME.fullmatch(path.stem) or _NAME.fullmatch(f"{path.parent.name}_{path.stem}")
    if match is None:
        return None
    speaker, code, number = match.groups()
    return Utterance(
        f"{speaker}_{code}{number}",
        str(path),
        label=CORPUS_CODES["savee"][code],
        speaker=speaker,
        language="en",
        corpus="savee",
        extra={"code": code, "sex": "m"},
    )


CORPUS = Corpus("savee", "SAVEE", 480, parse)
