"""Both span-mask samplers against fairseq's statistics over 2000 draws, and its exact examples."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.models.masking import block_mask, span_masks, span_masks_numpy
from tests.golden_roots import golden_cases

CASE = golden_cases("emotion2vec/mask_indices")[0]
STATISTICS = json.loads((CASE / "stats.json").read_text())
SPANS = STATISTICS["compute_mask_indices"]
BLOCKS = STATISTICS["compute_block_mask_1d"]
DRAWS = 400


def test_every_copy_of_the_statistics_is_the_same():
    for case in golden_cases("emotion2vec/mask_indices"):
        assert json.loads((case / "stats.json").read_text()) == STATISTICS


def settings(wanted):
    setting = dict(wanted["setting"])
    rows, length = setting.pop("B"), setting.pop("T")
    return setting, length, np.array(setting.pop("lengths", [length] * rows), np.int32)


def draw_spans(wanted, **changes):
    setting, length, frames = settings(wanted)
    draw = partial(span_masks, frames=frames, length=length, **{**setting, **changes})
    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), DRAWS)))


def draw_blocks(wanted, **changes):
    setting, length, frames = settings(wanted)
    setting.pop("require_same_masks")
    renamed = {"inverse_mask": "inverse", "expand_adjcent": "expand_adjacent"}
    setting = {renamed.get(name, name): value for name, value in setting.items()}
    draw = partial(block_mask, length=length, **{**setting, **changes})
    keys = jax.random.split(jax.random.key(4), (DRAWS, len(frames)))
    both = jax.vmap(jax.vmap(draw), (0, None))
    return np.asarray(jax.jit(both)(keys, jnp.asarray(frames)))


def disagreements(masks, wanted):
    """What of bool[draws, rows, frames] lies outside the statistics' tolerance."""
    found = []
    valid = np.array([row["valid_frames"] for row in wanted["rows"]])
    shares = masks.sum(-1) / valid
    for i, row in enumerate(wanted["rows"]):
        error = np.hypot(row["standard_error"], shares[:, i].std() / np.sqrt(len(masks)))
        if abs(shares[:, i].mean() - row["mean_masked_fraction_of_valid"]) > 4 * error + 1e-9:
            found.append(f"share of row {i}")
        if masks[:, i, valid[i] :].any():
            found.append(f"padding of row {i}")
    counts = masks.sum(-1)
    if (counts == counts[:, :1]).all() != wanted["all_rows_equal_count_in_every_draw"]:
        found.append("equal counts")
    used = wanted["run_lengths"]["rows_used"]
    lengths = run_lengths(masks if used == "all" else masks[:, used])
    for length, share in wanted["run_lengths"]["share_by_length"].items():
        if abs((lengths == int(length)).mean() - share) > 0.02:
            found.append(f"runs of {length}")
    edges = wanted["mask_probability_by_position"]
    rows = masks.mean(0) if edges["row"] == "pooled" else masks[:, [edges["row"]]].mean(0)
    probability, size = rows.mean(0)[: valid.max()], len(edges["first"])
    ends = np.concatenate([probability[:size], probability[-size:]])
    if np.abs(ends - np.array(edges["first"] + edges["last"])).max() > 0.08:
        found.append("positions")
    return found


def run_lengths(masks):
    rows = masks.reshape(-1, masks.shape[-1]).astype(np.int8)
    steps = np.diff(np.pad(rows, ((0, 0), (1, 1))), axis=1)
    return np.argwhere(steps == -1)[:, 1] - np.argwhere(steps == 1)[:, 1]


@pytest.mark.parametrize("name", SPANS)
def test_span_masks_have_upstreams_statistics(name):
    assert disagreements(draw_spans(SPANS[name]), SPANS[name]) == []


@pytest.mark.parametrize("name", BLOCKS)
def test_block_masks_have_upstreams_statistics(name):
    assert disagreements(draw_blocks(BLOCKS[name]), BLOCKS[name]) == []


@pytest.mark.parametrize(
    ("draw", "wanted", "changes"),
    [
        (draw_spans, SPANS["emotion2vec"], dict(mask_length=6)),
        (draw_spans, SPANS["emotion2vec"], dict(require_same_masks=False)),
        (draw_spans, SPANS["emotion2vec"], dict(mask_prob=0.52)),
        (draw_spans, SPANS["dropout"], dict(mask_dropout=0.0)),
        (draw_spans, SPANS["add_masks"], dict(add_masks=False)),
        (draw_blocks, BLOCKS["dataset_default"], dict(mask_prob_adjust=0.0)),
        (draw_blocks, BLOCKS["dataset_default"], dict(mask_prob=0.49)),
        (draw_blocks, BLOCKS["expand"], dict(expand_adjacent=False)),
        (draw_blocks, BLOCKS["non_overlapping"], dict(non_overlapping=False)),
        (draw_blocks, BLOCKS["inverse"], dict(inverse=False)),
    ],
)
def test_planted_fault_in_a_sampler_shows(draw, wanted, changes):
    assert disagreements(draw(wanted, **changes), wanted)


def test_planted_shift_of_a_mask_shows():
    assert disagreements(np.roll(draw_spans(SPANS["short"]), 1, -1), SPANS["short"])


@pytest.mark.parametrize("name", [name for name, wanted in SPANS.items() if wanted["example"]])
def test_numpy_masks_equal_upstreams_examples_exactly(name):
    setting, length, frames = settings(SPANS[name])
    example = SPANS[name]["example"]

    def masked_frames(seed):
        masks = span_masks_numpy(
            seed, example["epoch"], example["indices"], frames, length=length, **setting
        )
        return [np.flatnonzero(row).tolist() for row in masks]

    assert masked_frames(example["seed"]) == example["masked_frames"]
    assert masked_frames(example["seed"] + 1) != example["masked_frames"]
