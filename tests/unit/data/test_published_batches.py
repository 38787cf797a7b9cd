"""Every row that the published filter drops gets one sentence, and bad batches are refused."""

import dataclasses

import numpy as np
import pytest

from c2ser_jax.data.published_batches import PublishedFilter, PublishedRow, pad_batch, sorted_order
from c2ser_jax.errors import UserError

GOOD = PublishedRow("u1", 32_000, 16_000, 10, 20, True, "en", "<EMOTION>", "fine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": "None_in_extract_X"}, "no answer in it"),
        ({"language": None}, "no language"),
        ({"task": None}, "no task"),
        ({"has_vectors": False}, "no emotion vectors"),
        ({"samples": 464_001}, "2900.01 frames of 10 ms are more than 2900; cut the audio"),
        ({"samples": 480_000}, "its 3000 frames"),
        ({"answer_tokens": 0}, "answer is empty"),
        ({"answer_tokens": 201}, "201 tokens, more than 200"),
        ({"prompt_tokens": 966}, "1001 positions, more than 1000"),
    ],
)
def test_what_is_dropped_has_a_sentence(change, words):
    complaint = PublishedFilter().complaint(dataclasses.replace(GOOD, **change))
    assert complaint is not None and words in complaint and complaint.startswith("u1: ")
    assert PublishedFilter().complaint(GOOD) is None


def test_limits_are_fields():
    assert PublishedFilter(max_sequence=0).complaint(dataclasses.replace(GOOD, prompt_tokens=4000))\
        is None  # fmt: skip
    short = PublishedFilter(min_frames=300).complaint(GOOD)
    assert short == "u1: its 200 frames of 10 ms are fewer than 300; leave it out"
    bare = dataclasses.replace(GOOD, language=None, task=None)
    assert PublishedFilter(needs_language_and_task=False).complaint(bare) is None
    with pytest.raises(UserError, match="min_frames is 5 and max_frames is 4"):
        PublishedFilter(min_frames=5, max_frames=4)
    with pytest.raises(UserError, match="'<EMOTION>' has no prompts"):
        PublishedFilter().complaint(dataclasses.replace(GOOD, prompt_tokens=None))


def test_ties_keep_their_order_within_a_buffer():
    assert sorted_order([3, 1, 3, 1, 0], size=4) == [1, 3, 0, 2, 4]


def test_bad_batches_are_refused():
    row = {"key": "a", "features": np.ones((4, 3), np.float32), "answer": [1], "prompt": [],
           "vectors": np.ones((2, 5), np.float32), "samples": 640}  # fmt: skip
    batch = pad_batch([row], vector_width=7)
    assert batch["ssl_vecs"].shape == (1, 2, 7) and "prompt" not in batch
    with pytest.raises(UserError, match="5 wide, more than 4"):
        pad_batch([row], vector_width=4)
    with pytest.raises(UserError, match="without rows"):
        pad_batch([])
