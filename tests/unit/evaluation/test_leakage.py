"""What the check for trained-on test data promises is what it has compared."""

import numpy as np
import pytest

from c2ser_jax.data.manifest import Utterance
from c2ser_jax.data.sources import MemorySource
from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.runner import audio_checksums, check_leakage

SOURCE = MemorySource(
    [(Utterance(name, name), np.full(500, 0.1 * i)) for i, name in ((1, "a"), (2, "b"))]
)
CHECKSUM = SOURCE.scan(1).sha256


def check(trained_on, **options):
    return check_leakage(trained_on, SOURCE.utterances, lambda: audio_checksums(SOURCE), **options)


def rows(*checksums):
    return [{"id": f"t{i}", "audio_sha256": checksum} for i, checksum in enumerate(checksums)]


def test_audio_is_only_said_to_differ_where_checksums_are_known():
    assert "share no id and no audio" in check(rows("x", "y"))
    for given, compared in ((rows("", None), 0), (rows("x", ""), 1)):
        found = check(given)
        assert "no audio" not in found and f"with {compared} of them only" in found
        assert "checksums of the others are unknown" in found
    assert check(None).startswith("unknown")


def test_shared_ids_and_shared_audio_are_refused():
    with pytest.raises(UserError, match="the id 'b'.*with --allow-leakage$"):
        check([{"id": "b"}])
    with pytest.raises(UserError, match="audio of 'b' is that of 't0'.*with --let-it$"):
        check(rows(CHECKSUM, ""), option="--let-it")


def test_audio_is_only_read_where_there_is_something_to_compare_it_with():
    def refuse():
        raise AssertionError("read")

    for given in ([{"id": "t"}], rows("", None), [], None):
        assert check_leakage(given, SOURCE.utterances, refuse)
    with pytest.raises(UserError, match="the id 'b'"):
        check_leakage([{"id": "b", "audio_sha256": CHECKSUM}], SOURCE.utterances, refuse)
