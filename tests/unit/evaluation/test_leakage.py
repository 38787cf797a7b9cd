"""What the check for trained-on test data promises is what it has compared."""

import numpy as np
import pytest

from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import MemorySource
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.runner import check_leakage

SOURCE = MemorySource(
    [(Utterance(name, name), np.full(500, 0.1 * i)) for i, name in ((1, "a"), (2, "b"))]
)
CHECKSUM = SOURCE.scan(1).sha256


def rows(*checksums):
    return [{"id": f"t{i}", "audio_sha256": checksum} for i, checksum in enumerate(checksums)]


def test_audio_is_only_said_to_differ_where_checksums_are_known():
    assert "share no id and no audio" in check_leakage(rows("x", "y"), SOURCE)
    for given, compared in ((rows("", None), 0), (rows("x", ""), 1)):
        found = check_leakage(given, SOURCE)
        assert "no audio" not in found and f"with {compared} of them only" in found
        assert "checksums of the others are unknown" in found
    assert check_leakage(None, SOURCE).startswith("unknown")


def test_shared_ids_and_shared_audio_are_refused():
    with pytest.raises(UserError, match="the id 'b'"):
        check_leakage([{"id": "b"}], SOURCE)
    with pytest.raises(UserError, match="audio of 'b' is that of 't0'"):
        check_leakage(rows(CHECKSUM, ""), SOURCE)
