import contextlib
import json
import os
import resource

import numpy as np
import pytest

from c2ser_jax.data.feature_files import read_feature_folder, read_stacked, stack_features
from c2ser_jax.errors import UserError

CLIPS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/1": -np.arange(12, dtype=np.float32).reshape(4, 3),
    "c": np.ones((1, 3), np.float32),
}


def folder_of(tmp_path, rows=None):
    for i, values in enumerate(CLIPS.values()):
        np.save(tmp_path / f"f{i}.npy", values)
    rows = rows or [{"id": name, "file": f"f{i}.npy"} for i, name in enumerate(CLIPS)]
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (tmp_path / "index.jsonl").write_text(text, "utf-8")
    return tmp_path


def assert_holds(table, names):
    assert list(table.ids) == names and table.width == 3
    for name in names:
        np.testing.assert_array_equal(table.utterance(table.rows[name]), CLIPS[name])


def test_a_folder_gives_back_what_was_written(tmp_path):
    folder = folder_of(tmp_path)
    assert_holds(read_feature_folder(folder), list(CLIPS))
    some = read_feature_folder(str(folder), ids=["c", "a", "unknown"])
    assert_holds(some, ["a", "c"])
    assert some.frames.shape == (3, 3)
    odd = [{"id": "a\u2028b", "file": "f0.npy"}, {"id": "\udcff", "file": "f1.npy"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in odd)
    (folder / "index.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_feature_folder(folder).ids == ("a\u2028b", "\udcff")


def test_a_folder_of_more_files_than_a_process_may_open_is_read(tmp_path):
    rows = [{"id": f"u{i}"} for i in range(80)]
    for i, row in enumerate(rows):
        np.save(tmp_path / f"{row['id']}.npy", np.full((2, 3), i, np.float32))
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as opened:  # the twenty numbers that are free now
        free = [opened.enter_context(open(os.devnull)).fileno() for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        table = read_feature_folder(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(table.frames[::2, 0], np.arange(80))


def test_taking_rows_copies_them_end_to_end():
    table = stack_features(CLIPS)
    assert_holds(table.take([2, 0]), ["c", "a"])
    np.testing.assert_array_equal(table.take([2, 0]).starts, [0, 1])


def test_a_vector_counts_as_one_frame():
    table = stack_features([("a", np.zeros(5)), ("b", np.ones((2, 5), np.float16))])
    assert table.frames.dtype == np.float32 and table.lengths.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "no features"),
        ([("a", np.zeros((2, 3))), ("b", np.zeros((2, 4)))], "4 wide but those of 'a' 3"),
        ([("a", np.zeros((2, 3))), ("a", np.zeros((1, 3)))], "'a' twice"),
        ([("a", np.zeros((0, 3)))], "shape"),
        ((stack_features(CLIPS), ["sad"]), "pairs, or a mapping"),
        (3, "pairs, or a mapping"),
        ([("a", np.zeros((1, 2, 3)))], "shape"),
    ],
)
def test_features_that_do_not_fit_are_refused(pairs, words):
    with pytest.raises(UserError, match=words):
        stack_features(pairs)


def test_values_that_are_not_finite_are_named():
    with pytest.raises(UserError, match="1 of 2 utterances .* infinite .b."):
        stack_features({"a": np.zeros((2, 3)), "b": np.full((1, 3), np.inf)}).check_finite()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "a", "file": "gone.npy"}, "can't be read"),
        ({"id": "a", "file": "../f0.npy"}, "outside its folder"),
        ({"file": "f0.npy"}, "line 1 is not a row"),
        ("{bad", "line 1 is not a row"),
        ({"id": "a", "file": "whole.npy"}, "not floating-point"),
        ({"id": "a", "file": "objects.npy"}, "can't be read"),
        ({"id": "a", "file": "cut.npy"}, "can't be read"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, row, words):
    folder = folder_of(tmp_path, [row])
    np.save(folder / "whole.npy", np.arange(6).reshape(2, 3))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "f0.npy").read_bytes()[:-5])
    with pytest.raises(UserError, match=words):
        read_feature_folder(folder)


def test_a_folder_without_an_index_or_wanted_ids_is_refused(tmp_path):
    with pytest.raises(UserError, match="index.jsonl does not exist"):
        read_feature_folder(tmp_path)
    with pytest.raises(UserError, match="none of the utterances wanted"):
        read_feature_folder(folder_of(tmp_path), ids=["z"])


def stacked(tmp_path, lengths="2\n4\n1\n", labels="a\tang\nb\tsad\nc\tang\n"):
    np.save(tmp_path / "x.npy", np.concatenate(list(CLIPS.values())))
    (tmp_path / "x.lengths").write_text(lengths)
    (tmp_path / "x.emo").write_text(labels)
    return tmp_path / "x"


def test_stacked_files_keep_labels_with_their_utterances_when_filtered(tmp_path):
    table, labels = read_stacked(stacked(tmp_path))
    assert labels == ["ang", "sad", "ang"] and table.lengths.tolist() == [2, 4, 1]
    long, labels = read_stacked(tmp_path / "x", min_frames=2)
    assert (long.ids, labels) == (("a", "b"), ["ang", "sad"])
    np.testing.assert_array_equal(long.utterance(1), CLIPS["b/1"])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"lengths": "2\n4\n2\n"}, "add up to 8"),
        ({"lengths": "2\nx\n1\n"}, "whole number"),
        ({"lengths": "2\n5\n"}, "2 lengths but 3 labels"),
        ({"lengths": "3\n4\n0\n"}, "at least 1"),
        ({"labels": "a ang\nb\tsad\nc\tang\n"}, "name<TAB>label"),
    ],
)
def test_stacked_files_that_disagree_are_refused(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        read_stacked(stacked(tmp_path, **files))
    with pytest.raises(UserError, match="does not exist"):
        read_stacked(tmp_path / "y")
