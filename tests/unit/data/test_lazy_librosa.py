"""librosa is loaded by one process at a time, and by all processes of a pool at once."""

import logging
import sys

import pytest
from filelock import FileLock, Timeout

from c2ser_jax.data import lazy_librosa
from c2ser_jax.data.lazy_librosa import load_librosa, lock_file


@pytest.fixture
def locked_while_loading(tmp_path, monkeypatch):
    """A list that tells of each first load whether another process would have had to wait."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "librosa.core.pitch", raising=False)
    found = []

    def load():
        try:
            with FileLock(lock_file(), timeout=0):
                found.append(False)
        except Timeout:
            found.append(True)

    monkeypatch.setattr(lazy_librosa, "_import", load)
    return found


def test_others_wait_while_one_process_loads(locked_while_loading):
    load_librosa()
    assert locked_while_loading == [True]
    with FileLock(lock_file(), timeout=0):
        pass  # and no longer


def test_a_pool_whose_parent_has_loaded_it_does_not_wait(locked_while_loading):
    lock_file().parent.mkdir(parents=True)
    load_librosa(lock=False)
    assert locked_while_loading == [False]


@pytest.mark.parametrize("error", [PermissionError, NotImplementedError])
def test_where_no_file_can_be_locked_it_is_loaded_nevertheless(
    error, locked_while_loading, monkeypatch, caplog
):
    def refuse(lock):
        raise error("no lock here")

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", refuse)
        patch.setattr(lazy_librosa, "_import", lambda: "loaded")
        with caplog.at_level(logging.WARNING):
            assert load_librosa() == "loaded"
    assert "without a lock (no lock here)" in caplog.text
