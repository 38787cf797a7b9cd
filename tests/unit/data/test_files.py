"""Files are replaced whole or not at all, and a place that can't be written is one sentence."""

import errno
import json
from pathlib import Path

import pytest

from c2ser_jax.data.files import check_writable, read_rows, replacing, write_text
from c2ser_jax.data.manifest import Utterance, write_manifest
from c2ser_jax.errors import UserError


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_is_written_into_a_new_folder_and_leaves_nothing_else(tmp_path):
    path = write_text(tmp_path / "deep" / "a.txt", "ü \udcff\n")
    assert path.read_bytes() == b"\xc3\xbc \xff\n" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_file_before_it(tmp_path, error):
    path = write_text(tmp_path / "a.txt", "before")
    with pytest.raises((UserError, KeyboardInterrupt)), replacing(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_and_a_file_for_a_folder_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "a.jsonl"
    for write in (
        lambda: write_text(below, "x"),
        lambda: write_manifest(below, [Utterance("a", "a.wav")]),
        lambda: check_writable(below),
    ):
        with pytest.raises(UserError, match="cannot write .*a.jsonl: .*; make room"):
            write()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="b.txt: No space left on device; make room"):
        write_text(tmp_path / "b.txt", "x")


def test_rows_are_read_up_to_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_rows(path) == []
    rows = [{"id": "a\u2028b"}, {"id": "\udcff"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, f"{text}\n[1]\n" + '{"id": "c')
    assert read_rows(path) == read_rows(path, strict=True) == rows
    write_text(path, '{"half\n' + text)
    assert read_rows(path) == rows
    with pytest.raises(UserError, match="log.jsonl, line 1 is not JSON"):
        read_rows(path, strict=True)


def test_a_writable_place_is_not_touched_by_the_check(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
