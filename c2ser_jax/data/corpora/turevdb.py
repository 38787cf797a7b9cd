"""TurEV-DB (Turkish, 6 speakers, single words): name speaker_emotion_word, e.g. 1984_sk_dil.

Canpolat et al., "Turkish Emotion Voice Database (TurEV-DB)", SLTU-CCURL 2020.
"""

import re
from pathlib import PurePath

from c2ser_jax.data.corpora.corpus import Corpus
from c2ser_jax.data.manifest import Utterance

_CODES = {"kz": "angry", "sk": "calm", "mt": "happy", "hl": "sad"}  # kızgın sakin mutlu hüzünlü
_NAME = re.compile(r"(\d{4})_(kz|sk|mt|hl)_(.+)")


def parse(path: PurePath) -> Utterance | None:
    """Speaker, emotion and word from a name such as 1984_sk_dil."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    speaker, code, word = match.groups()
    return Utterance(
        path.stem,
        str(path),
        label=_CODES[code],
        speaker=speaker,
        language="tr",
        corpus="turevdb",
        text=word,
        extra={"code": code},
    )


CORPUS = Corpus("turevdb", "TurEV-DB", 1735, parse)
