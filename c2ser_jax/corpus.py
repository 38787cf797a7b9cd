"""From a run's `data` section to audio, labels and folds."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from c2ser_jax.config import EMBEDDED, CorpusConfig, RunConfig
from c2ser_jax.data import splits
from c2ser_jax.data.audio import MIN_SAMPLES, SAMPLE_RATE, BadAudio
from c2ser_jax.data.corpora.registry import prepare_corpus
from c2ser_jax.data.labels import label_set, map_labels
from c2ser_jax.data.manifest import Utterance, read_manifest
from c2ser_jax.data.scanning import BadFile, scan_source
from c2ser_jax.data.sources import FileSource, MemorySource, Source, tfds_source
from c2ser_jax.data.spoken_scenes import speak_scenes
from c2ser_jax.data.synthetic import synthesize
from c2ser_jax.errors import UserError


def read_corpus(cfg: CorpusConfig) -> tuple[Source, list[BadFile]]:
    """The corpus's usable utterances with their audio at hand, and the files that cannot be used.

    Raises:
      UserError: the corpus or list is not where the config says, or too much of it is bad.
    """
    scanned = scan_source(
        _every_utterance(cfg),
        decode=cfg.scan == "decode",
        cache=cfg.cache and cfg.corpus not in EMBEDDED,
        allow_silent=cfg.allow_silent,
        max_bad_share=cfg.max_bad_share,
    )
    if not scanned.bad:
        return scanned.source, []
    usable = [scanned.source.utterances[i] for i in scanned.usable]
    return source_of(scanned.source, usable), scanned.bad


def _every_utterance(cfg: CorpusConfig) -> Source:
    if cfg.corpus == "synthetic":
        return MemorySource(synthesize(cfg.synthetic))
    if cfg.corpus == "spoken_scenes":
        return MemorySource(speak_scenes(cfg.spoken_scenes))
    if cfg.corpus == "manifest":
        return FileSource(read_manifest(cfg.manifest, root=cfg.root or None))
    if cfg.corpus.startswith("tfds_"):
        name = cfg.corpus.removeprefix("tfds_")
        return tfds_source(name, split="all", data_dir=cfg.root or None)
    if not cfg.root:
        raise UserError(f"data.corpus is {cfg.corpus!r}: name its folder with --data.root DIR")
    return FileSource(prepare_corpus(cfg.corpus, cfg.root).utterances)


def corpus_labels(run: RunConfig, source: Source) -> list[str]:
    """The label set in class order: the config's, or all labels of the corpus alphabetically.

    Raises:
      UserError: there is none, and a stage needs one.
    """
    labels = list(run.data.labels) or label_set(u.label for u in source.utterances)
    if run.needs_labels and not labels:
        raise UserError(
            "no utterance of the corpus has a label, and a stage of this run needs labels; to "
            "pretrain without them, set --pretrain.task.category_weight 0 and --stages pretrain"
        )
    return labels


def make_folds(
    cfg: CorpusConfig, source: Source, seed: int, bad: Sequence[BadFile] = ()
) -> list[splits.Fold]:
    """The folds of the protocol, those that `data.folds` names ("speaker-03" or "03") or all.

    Lists may name the `bad` files beside the usable utterances of `source`.

    Raises:
      UserError: speakers are unknown, lists are missing, or a named fold does not exist.
    """
    utterances = list(source.utterances)
    if cfg.protocol == "loso":
        folds = splits.leave_one_speaker_out(utterances, seed=seed)
    elif cfg.protocol == "lists":
        folds = splits.emobox_folds(
            utterances, cfg.lists, seed=seed, unusable=[file.id for file in bad]
        )
    elif cfg.protocol == "all":
        folds = [splits.Fold("all", utterances, [], [])]
    else:
        folds = [
            splits.speaker_disjoint_split(
                utterances, test_share=cfg.test_share, seed=seed, test_speakers=cfg.test_speakers
            )
        ]
    if not cfg.development:
        folds = [fold.without_dev() for fold in folds]
    if not cfg.folds:
        return folds
    by_name = {fold.name: fold for fold in folds}
    by_name.update({fold.name.rpartition("-")[2]: fold for fold in folds})
    unknown = [name for name in cfg.folds if name not in by_name]
    if unknown:
        names = ", ".join(fold.name for fold in folds)
        raise UserError(f"there is no fold {unknown[0]!r}; the folds are {names}")
    return [by_name[name] for name in cfg.folds]


def name_classes(run: RunConfig, fold: splits.Fold, labels: Sequence[str]) -> splits.Fold:
    """The fold with every label as the class that means it ("anger" as "angry").

    A label that means no class becomes none where all training stages say so
    (`<stage>.batches.unknown_labels`), so that its row is neither a target nor scored.

    Raises:
      UserError: a label means no class, and a stage refuses such labels.
    """
    names = [name for name in run.configured_stages() if name != "probe"]
    stages = {
        name: stage for name in names or ("pretrain", "classify") if (stage := getattr(run, name))
    }
    loose = bool(stages) and all(
        stage.batches.unknown_labels == "unlabelled" for stage in stages.values()
    )

    remedy = "name the classes with --data.labels"
    if stages:
        options = " ".join(f"--{name}.batches.unknown_labels unlabelled" for name in stages)
        remedy += f", or leave such rows without a label with {options}"

    def named(part: list[Utterance]) -> list[Utterance]:
        found = map_labels(
            [u.label for u in part],
            labels,
            corpora=[u.corpus for u in part],
            ignore_unknown=loose,
            remedy=remedy,
        )
        classes = [*labels, None]  # -1 is unlabelled
        return [
            u if u.label == classes[i] else dataclasses.replace(u, label=classes[i])
            for u, i in zip(part, found, strict=True)
        ]

    return splits.Fold(fold.name, named(fold.train), named(fold.dev), named(fold.test))


def source_of(source: Source, utterances: Sequence[Utterance]) -> Source:
    """The part of a source that holds these utterances (with the labels given here)."""
    if isinstance(source, FileSource):
        return FileSource(utterances)
    places = {u.id: place for place, u in enumerate(source.utterances)}
    return MemorySource([(u, source.load(places[u.id])[0]) for u in utterances])


def sample_audio(source: Source, seconds: float, *, seed: int) -> list[np.ndarray]:
    """Up to `seconds` of a source's audio, float32[N] each, in its order; bad files are left out.

    A source that holds more gives utterances drawn by the seed, the last of them cut off.
    """
    left = round(seconds * SAMPLE_RATE)
    found: dict[int, np.ndarray] = {}
    for place in np.random.default_rng(seed).permutation(len(source)).tolist():
        if left < MIN_SAMPLES:
            break
        try:
            found[place] = source.load_piece(place, 0, left)
        except BadAudio:
            continue
        left -= len(found[place])
    return [found[place] for place in sorted(found)]
