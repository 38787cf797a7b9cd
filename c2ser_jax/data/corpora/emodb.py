"""EmoDB (Berlin, German, 10 speakers): name code SSTTTEV, e.g. 03a01Fa.

Burkhardt et al., "A Database of German Emotional Speech", Interspeech 2005. A `metadata.jsonl`
beside the audio adds sex, age and listening tests.
"""

import re
from pathlib import Path, PurePath

from c2ser_jax.data.corpora.corpus import Corpus, Prepared, prepare
from c2ser_jax.data.labels import CORPUS_CODES
from c2ser_jax.data.manifest import Utterance, read_manifest

SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_NAME = re.compile(r"(\d\d)([ab]\d\d)([WLEAFTN])([a-z]?)")


def parse(path: PurePath) -> Utterance | None:
    """Speaker, sentence and emotion from a name such as 03a01Fa."""
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return None
    speaker, sentence, code, _ = match.groups()
    return Utterance(
        path.stem,
        str(path),
        label=CORPUS_CODES["emodb"][code.lower()],
        speaker=speaker,
        language="de",
        corpus="emodb",
        text=SENTENCES.get(sentence),
        extra={"code": code, "sentence": sentence},
    )


CORPUS = Corpus("emodb", "EmoDB", 535, parse)


def prepare_emodb(root: str | Path) -> Prepared:
    """As `prepare`, with the fields of `metadata.jsonl` when it lies in the folder."""
    prepared = prepare(CORPUS, root)
    metadata = Path(root) / "metadata.jsonl"
    if not metadata.exists():
        return prepared
    known = {row.id: row.extra for row in read_manifest(metadata)}
    rows = [
        Utterance(**{**vars(row), "extra": {**row.extra, **known.get(row.id, {})}})
        for row in prepared.utterances
    ]
    return Prepared(rows, prepared.foreign, prepared.repeated)
