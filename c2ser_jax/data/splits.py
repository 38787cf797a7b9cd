"""Train, dev and test: by speaker, by EmoBox's folds, or by share; dev is never test.

Model selection sees `dev` only; a speaker of the test part is in no other part unless the split
is EmoBox's own (several of its sets share speakers: `shared_speakers` tells).
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from c2ser_jax.data.manifest import Utterance, read_manifest
from c2ser_jax.errors import UserError


@dataclass(frozen=True)
class Fold:
    """One split: lists of utterances that have nothing in common."""

    name: str
    train: list[Utterance]
    dev: list[Utterance]
    test: list[Utterance]

    def without_dev(self) -> "Fold":
        """The fold with its development utterances in training."""
        return Fold(self.name, [*self.train, *self.dev], [], self.test)


def leave_one_speaker_out(utterances: Sequence[Utterance], *, seed: int = 0) -> list[Fold]:
    """One fold per speaker, sorted: that speaker is test, another one is dev, the rest train.

    The seed puts the speakers on a circle; dev is the test speaker's neighbour, so every speaker
    is dev once. Raises `UserError` with fewer than 3 speakers or a row without speaker.
    """
    speakers = _speakers(utterances)
    if len(speakers) < 3:
        raise UserError(f"leave-one-speaker-out needs at least 3 speakers, got {len(speakers)}")
    circle = [speakers[i] for i in np.random.default_rng(seed).permutation(len(speakers))]
    following = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
    return [
        Fold(
            f"speaker-{speaker}",
            [u for u in utterances if u.speaker not in (speaker, following[speaker])],
            [u for u in utterances if u.speaker == following[speaker]],
            [u for u in utterances if u.speaker == speaker],
        )
        for speaker in speakers
    ]


def emobox_folds(
    utterances: Sequence[Utterance],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    dev: Literal["share", "speaker"] = "share",
    dev_share: float = 0.2,
    unusable: Collection[str] = (),
    allow_missing: bool = False,
) -> list[Fold]:
    """EmoBox's folds over our utterances, joined by the key without its set name.

    `dev` is the set's own validation list, or `dev_share` of train (stratified by label, as EmoBox
    takes 20 % at random), or a whole training speaker. `unusable` are ids whose audio cannot be
    used: the folds go on without them. Raises `UserError` when other listed utterances are not
    among ours, unless `allow_missing`, and when two parts of a fold name the same one of ours.
    """
    from c2ser_jax.data.corpora.emobox import fold_lists

    ours: dict[str, Utterance | None] = {join_key(u.id): u for u in utterances}
    if len(ours) < len(utterances):
        raise UserError("two ids differ only in punctuation; EmoBox's keys cannot be joined")
    ours = {**{join_key(name): None for name in unusable}, **ours}
    folds = []
    for number, lists in fold_lists(os.fspath(folder)).items():
        parts: dict[str, list[Utterance]] = {}
        for part, path in lists.items():
            listed = read_manifest(path)
            keys = [_match(row, ours) for row in listed]
            missing = [row.id for row, key in zip(listed, keys, strict=True) if key is None]
            if missing and not allow_missing:
                raise UserError(
                    f"{path}: {len(missing)} of {len(listed)} listed utterances are not in the "
                    f"data, such as {missing[0]!r}; give the whole corpus"
                )
            found = [ours[key] for key in keys if key is not None]
            parts[part] = [row for row in found if row is not None]
        train, held = parts.get("train", []), parts.get("valid")
        if held is None:
            rng_seed = seed + 1000 * number
            split = stratified_split if dev == "share" else _speaker_split
            train, held = split(train, dev_share, seed=rng_seed)
        fold = Fold(f"fold-{number}", train, held, parts.get("test", []))
        check_disjoint(fold)
        folds.append(fold)
    return folds


def speaker_disjoint_split(
    utterances: Sequence[Utterance], *, dev_share: float = 0.15, test_share: float = 0.25, seed=0,
    test_speakers: Collection[str] = (),
) -> Fold:  # fmt: skip
    """Splits the speakers (seeded order) so that test and dev hold about their share of the rows.

    `test_speakers` names those of the test part instead. Each part gets at least one speaker.
    Raises `UserError` with fewer than 3 speakers, with a name that nobody has, or when fewer than
    two speakers are left to train on.
    """
    speakers = _speakers(utterances)
    if len(speakers) < 3:
        raise UserError(f"a speaker-disjoint split needs at least 3 speakers, got {len(speakers)}")
    unknown = sorted(set(test_speakers) - set(speakers))
    if unknown:
        raise UserError(f"there is no speaker {unknown[0]!r}; they are {', '.join(speakers)}")
    order = [speakers[i] for i in np.random.default_rng(seed).permutation(len(speakers))]
    order = [speaker for speaker in order if speaker not in test_speakers]
    if len(order) < 2:
        raise UserError("test_speakers leaves fewer than 2 speakers; name fewer of them")
    counts = {s: sum(u.speaker == s for u in utterances) for s in speakers}
    held = {"test": set(test_speakers)}
    parts = (("test", test_share, 2), ("dev", dev_share, 1))
    for part, share, kept in parts[1:] if test_speakers else parts:
        chosen: set[str] = set()
        while len(order) > kept and (
            not chosen or sum(counts[s] for s in chosen) < share * len(utterances)
        ):
            chosen.add(order.pop())
        held[part] = chosen
    fold = Fold(
        "speakers",
        [u for u in utterances if u.speaker in order],
        [u for u in utterances if u.speaker in held["dev"]],
        [u for u in utterances if u.speaker in held["test"]],
    )
    return fold


def stratified_split(
    utterances: Sequence[Utterance], share: float, *, seed: int = 0
) -> tuple[list[Utterance], list[Utterance]]:
    """Returns (rest, part): `part` has about `share` of every label's rows, drawn by the seed."""
    if not 0 < share < 1:
        raise UserError(f"the share of a split must lie between 0 and 1, got {share}")
    rng = np.random.default_rng(seed)
    part: set[str] = set()
    for label in sorted({u.label or "" for u in utterances}):
        ids = sorted(u.id for u in utterances if (u.label or "") == label)
        part.update(ids[i] for i in rng.permutation(len(ids))[: round(share * len(ids))])
    rest = [u for u in utterances if u.id not in part]
    return rest, [u for u in utterances if u.id in part]


def shared_speakers(fold: Fold) -> list[str]:
    """Speakers of the test part that are also in train or dev (leakage), sorted."""
    seen = {u.speaker for u in (*fold.train, *fold.dev)}
    return sorted({u.speaker for u in fold.test if u.speaker is not None and u.speaker in seen})


def check_disjoint(fold: Fold) -> None:
    """Raises `UserError` when an utterance is in two parts of a fold."""
    seen: dict[str, str] = {}
    for part in ("train", "dev", "test"):
        for row in getattr(fold, part):
            if seen.setdefault(row.id, part) != part:
                raise UserError(
                    f"{fold.name}: {row.id!r} is in {seen[row.id]} and in {part}; correct the "
                    "lists, or give every listed utterance an id of its own"
                )


def join_key(name: str) -> str:
    """A name as it compares between lists: lower case, no ending, only letters, digits, "-"."""
    name = re.sub(r"\.(wav|flac|mp3|ogg)$", "", name.lower())
    return re.sub(r"[\W_]+", "-", name).strip("-")


def _match(row: Utterance, ours: Collection[str]) -> str | None:
    """The key of ours for a listed row: whole, without the set's name, or by the file's name."""
    key = join_key(row.id)
    stem = join_key(os.path.basename(row.path))
    for candidate in (key, key.partition("-")[2], stem):
        if candidate in ours:
            return candidate
    return None


def _speakers(utterances: Sequence[Utterance]) -> list[str]:
    nameless = next((u for u in utterances if u.speaker is None), None)
    if nameless is not None:
        raise UserError(f"{nameless.id!r} has no speaker; a split by speaker needs one per row")
    return sorted({u.speaker for u in utterances if u.speaker is not None})


def _speaker_split(
    utterances: Sequence[Utterance], share: float, *, seed: int
) -> tuple[list[Utterance], list[Utterance]]:
    """Returns (rest, one speaker drawn by the seed); the share does not matter."""
    del share
    speakers = _speakers(utterances)
    chosen = speakers[int(np.random.default_rng(seed).integers(len(speakers)))]
    rest = [u for u in utterances if u.speaker != chosen]
    return rest, [u for u in utterances if u.speaker == chosen]
