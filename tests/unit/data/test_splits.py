"""Splits keep test speakers out of train and dev, are seeded, and join EmoBox's folds by key."""

import json
from collections import Counter
from pathlib import Path

import pytest

from c2ser_jax.data.corpora.emobox import listed
from c2ser_jax.data.manifest import Utterance, read_manifest
from c2ser_jax.data.splits import (
    Fold,
    check_disjoint,
    emobox_folds,
    join_key,
    leave_one_speaker_out,
    shared_speakers,
    speaker_disjoint_split,
    stratified_split,
)
from c2ser_jax.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"


def rows(speakers=5, per=8, labels=("a", "b")):
    return [
        Utterance(f"{s}_{i:02d}", f"{s}_{i}.wav", label=labels[i % len(labels)], speaker=f"s{s}")
        for s in range(speakers)
        for i in range(per)
    ]


def ids(utterances):
    return {u.id for u in utterances}


def test_every_speaker_is_test_once_and_dev_once_and_never_both():
    data = rows()
    folds = leave_one_speaker_out(data, seed=3)
    assert [fold.name for fold in folds] == [f"speaker-s{i}" for i in range(5)]
    devs = []
    for fold in folds:
        check_disjoint(fold)
        assert not shared_speakers(fold)
        assert ids(fold.train) | ids(fold.dev) | ids(fold.test) == ids(data)
        (dev,) = {u.speaker for u in fold.dev}
        assert dev not in {u.speaker for u in fold.train}
        devs.append(dev)
    assert sorted(devs) == [f"s{i}" for i in range(5)]


def test_the_seed_and_nothing_else_chooses_dev():
    data = rows(8)
    first = [ids(fold.dev) for fold in leave_one_speaker_out(data, seed=0)]
    assert first == [ids(fold.dev) for fold in leave_one_speaker_out(data[::-1], seed=0)]
    others = [[ids(f.dev) for f in leave_one_speaker_out(data, seed=s)] for s in range(1, 4)]
    assert any(first != other for other in others)


def test_splits_by_speaker_need_speakers():
    with pytest.raises(UserError, match="at least 3 speakers"):
        leave_one_speaker_out(rows(2))
    with pytest.raises(UserError, match="at least 3 speakers"):
        speaker_disjoint_split(rows(2))
    with pytest.raises(UserError, match="'lost' has no speaker"):
        leave_one_speaker_out([*rows(), Utterance("lost", "x.wav")])


@pytest.mark.parametrize("speakers", [3, 4, 9])
def test_a_speaker_disjoint_split_holds_about_its_shares(speakers):
    data = rows(speakers, 20)
    fold = speaker_disjoint_split(data, dev_share=0.15, test_share=0.25, seed=1)
    check_disjoint(fold)
    assert not shared_speakers(fold) and fold.train and fold.dev and fold.test
    assert ids(fold.train) | ids(fold.dev) | ids(fold.test) == ids(data)
    assert not {u.speaker for u in fold.dev} & {u.speaker for u in fold.train}
    if speakers == 9:
        assert 0.2 < len(fold.test) / len(data) < 0.36


def test_named_speakers_are_held_out_whatever_the_seed():
    data = rows(6)
    for seed in range(3):
        fold = speaker_disjoint_split(data, seed=seed, test_speakers=("s1", "s4"))
        check_disjoint(fold)
        assert {u.speaker for u in fold.test} == {"s1", "s4"} and fold.dev and fold.train
    with pytest.raises(UserError, match="no speaker 'x'; they are s0, s1"):
        speaker_disjoint_split(data, test_speakers=("x",))
    with pytest.raises(UserError, match="fewer than 2"):
        speaker_disjoint_split(data, test_speakers=("s0", "s1", "s2", "s3", "s4"))


def test_a_stratified_part_has_its_share_of_every_label():
    data = rows(4, 25, labels=("a", "b", "b", "b", "c"))
    rest, part = stratified_split(data, 0.2, seed=5)
    assert ids(rest) | ids(part) == ids(data) and not ids(rest) & ids(part)
    assert Counter(u.label for u in part) == {"a": 4, "b": 12, "c": 4}
    assert ids(stratified_split(data[::-1], 0.2, seed=5)[1]) == ids(part)
    assert ids(stratified_split(data, 0.2, seed=6)[1]) != ids(part)
    with pytest.raises(UserError, match="share"):
        stratified_split(data, 1.0)


def test_leaks_are_found():
    a, b = rows(2, 2)[:2], rows(2, 2)[2:]
    assert shared_speakers(Fold("f", a[:1], [], a[1:])) == ["s0"]
    assert shared_speakers(Fold("f", a, [], b)) == []
    with pytest.raises(UserError, match="'0_00' is in train and in test"):
        check_disjoint(Fold("f", a, b, a))


def write_folds(folder, keys, name="emodb"):
    for fold in (1, 2):
        part = folder / f"fold_{fold}"
        part.mkdir(parents=True)
        for kind in ("train", "test"):
            chosen = [k for i, k in enumerate(keys) if (i % 2 == fold - 1) == (kind == "test")]
            lines = [
                {"key": k, "wav": f"downloads/{k.removeprefix(f'{name}-')}.wav", "emo": "x"}
                for k in chosen
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (part / f"{name}_{kind}_fold_{fold}.jsonl").write_text(text)
    return folder


def test_emobox_folds_join_ids_of_any_punctuation(tmp_path):
    data = [
        Utterance(f"{1001 + i}_IEO_{e}_XX", "x.wav", label=e, speaker=str(i))
        for i in range(10)
        for e in ("HAP", "SAD")
    ]
    endings = (".wav", "", "")
    keys = [f"cremad-{u.id}".replace("_", "-") + endings[i % 3] for i, u in enumerate(data)]
    folds = emobox_folds(data, write_folds(tmp_path / "cremad", keys), seed=0)
    assert [fold.name for fold in folds] == ["fold-1", "fold-2"]
    assert ids(folds[0].test) == ids(data[::2]) and ids(folds[1].test) == ids(data[1::2])
    for fold in folds:
        check_disjoint(fold)
        assert len(fold.dev) == 2 and ids(fold.train) | ids(fold.dev) | ids(fold.test) == ids(data)
    by_speaker = emobox_folds(data, tmp_path / "cremad", dev="speaker")[0]
    assert len({u.speaker for u in by_speaker.dev}) == 1
    assert not {u.speaker for u in by_speaker.dev} & {u.speaker for u in by_speaker.train}


def test_listed_utterances_that_we_lack_are_refused(tmp_path):
    data = rows(3, 4)
    folder = write_folds(tmp_path / "set", [f"set-{u.id}" for u in data])
    with pytest.raises(UserError, match="1 of 6 listed utterances are not in the data, such as"):
        emobox_folds(data[1:], folder)
    (first, _) = emobox_folds(data[1:], folder, allow_missing=True)
    assert len(first.test) == 5


def test_lists_whose_parts_name_the_same_utterance_are_refused(tmp_path):
    """Two keys whose files have one name, as in sets with a folder per part, are one of ours."""
    data = rows(3, 4)
    folder = write_folds(tmp_path / "set", [f"set-{u.id}" for u in data])
    path = folder / "fold_2" / "emodb_test_fold_2.jsonl"
    again = {"key": "set-test-0_00", "wav": "test/0_00.wav", "emo": "x"}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    with pytest.raises(UserError, match="fold-2: '0_00' is in (train|dev) and in test; correct"):
        emobox_folds(data, folder)


def test_folds_go_on_without_unusable_files_but_not_without_others(tmp_path):
    data = rows(3, 4)
    folder = write_folds(tmp_path / "set", [f"set-{u.id}" for u in data])
    (first, second) = emobox_folds(data[1:], folder, unusable=[data[0].id])
    assert ids(first.test) == ids(data[2::2]) and ids(second.test) == ids(data[1::2])
    assert ids(second.train) | ids(second.dev) == ids(data[2::2])
    with pytest.raises(UserError, match="1 of 6 listed .*'set-0_01'"):
        emobox_folds(data[2:], folder, unusable=[data[0].id])


@pytest.mark.parametrize(
    ("one", "other"),
    [("1001_IEO_HAP_LO", "1001-ieo-hap-lo.wav"), ("a03 (3)", "a03-3"), ("é_ü", "é-ü")],
)
def test_join_keys_ignore_case_punctuation_and_ending(one, other):
    assert join_key(one) == join_key(other)
    assert join_key(one) != join_key(one + "x")


PLACES = ["made", *([SHARED] if SHARED.is_dir() else [])]


@pytest.mark.parametrize("place", PLACES)
def test_emodb_folds_join_with_the_metadata_and_share_their_speakers(tmp_path, place):
    if place == "made":
        place = tmp_path
        names = [f"{s:02d}a{i:02d}Na" for s in range(3, 13) for i in range(4)]
        made = [{"index": n, "wav": f"{n}.flac", "emotion": "x", "speaker": n[:2]} for n in names]
        (place / "emodb").mkdir()
        (place / "emodb" / "metadata.jsonl").write_text("\n".join(map(json.dumps, made)))
        write_folds(place / "emobox" / "emodb", [f"emodb-{name}" for name in names])
    data = read_manifest(place / "emodb" / "metadata.jsonl")
    folds = emobox_folds(data, place / "emobox" / "emodb")
    assert [len(fold.test) for fold in folds] == ([20] * 2 if place == tmp_path else [107] * 5)
    assert set().union(*(ids(fold.test) for fold in folds)) == ids(data)
    assert all(len(shared_speakers(fold)) == 10 for fold in folds)  # its README says so
    for fold in folds:
        check_disjoint(fold)


@pytest.mark.parametrize("place", PLACES)
def test_ravdess_folds_share_no_speaker(tmp_path, place):
    if place == "made":
        place = tmp_path
        names = [f"ravdess-03-01-{1 + i // 6:02d}-01-02-01-{1 + i % 6:02d}" for i in range(24)]
        folder = write_folds(place / "emobox" / "ravdess", names, "ravdess")
        (folder / "label_map.json").write_text(json.dumps({"x": "Angry"}))
    folder = place / "emobox" / "ravdess"
    data = listed(folder)
    folds = emobox_folds(data, folder)
    assert len({u.speaker for u in data} - {None}) >= 6
    assert len(folds) > 1 and all(fold.test for fold in folds)
    assert not any(shared_speakers(fold) for fold in folds)
