"""An exported file is on the disk before it takes its name, and leaves nothing beside it."""

import os

import numpy as np
import pytest

from conversions.export import write_flat
from conversions.torch_writer import OutTensor, write_torch

TENSOR = OutTensor((2, 3), np.dtype(np.float32), lambda: np.ones((2, 3), np.float32))
WRITERS = [
    lambda path, tensor: write_torch(path, {"w": tensor}),
    lambda path, tensor: write_flat(path, {"w": tensor}, {}),
]


@pytest.mark.parametrize("write", WRITERS)
def test_bytes_are_on_the_disk_before_the_file_gets_its_name(tmp_path, monkeypatch, write):
    events = []
    real = {"fsync": os.fsync, "replace": os.replace}
    monkeypatch.setattr(
        os, "fsync", lambda f: events.append(os.fstat(f).st_size) or real["fsync"](f)
    )
    monkeypatch.setattr(os, "replace", lambda *a: events.append("replace") or real["replace"](*a))
    path = tmp_path / "a"
    write(path, TENSOR)
    assert events == [path.stat().st_size, "replace"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_a_writer_that_fails_leaves_nothing(tmp_path, write):
    def fail():
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write(tmp_path / "a", OutTensor((2,), np.dtype(np.float32), fail))
    assert not list(tmp_path.iterdir())
