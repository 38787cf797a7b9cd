"""The corpora that have a preparer, by name."""

from pathlib import Path

from c2ser_jax.data.corpora import cremad, emodb, ravdess, savee, turevdb, urdu
from c2ser_jax.data.corpora.corpus import Prepared, prepare

CORPORA = {m.CORPUS.name: m.CORPUS for m in (cremad, emodb, ravdess, savee, turevdb, urdu)}
_SPECIAL = {"emodb": emodb.prepare_emodb, "cremad": cremad.prepare_cremad}


def prepare_corpus(name: str, root: str | Path) -> Prepared:
    """The utterances of a corpus in a folder; raises `UserError` when none are there."""
    return _SPECIAL[name](root) if name in _SPECIAL else prepare(CORPORA[name], root)
