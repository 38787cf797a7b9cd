"""emotion2vec's IEMOCAP probe against numbers of the published code (golden/downstream)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.data.feature_files import read_stacked
from c2ser_jax.evaluation.metrics import class_indices, classification_metrics
from c2ser_jax.models.heads import DownstreamHead, length_mask
from c2ser_jax.tasks.probe import predict_logits
from c2ser_jax.tasks.probe_grid import pack, start_grid, train_epoch
from c2ser_jax.tasks.probe_recipe import IEMOCAP, ProbeConfig, momenta, rate_factors
from conversions.reader import read_state_dict
from tests.golden_roots import golden_cases

CASES = golden_cases("downstream/iemocap_probe")
CLASSES = ["ang", "hap", "neu", "sad"]


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.parent.parent.parent.name)
def case(request):
    folder = request.param
    io = np.load(folder / "io.npz", allow_pickle=False)
    weights = read_state_dict(folder / "state_dict.pt")
    table, names = read_stacked(folder / "train")
    return {
        "folder": folder,
        "meta": json.loads((folder / "meta.json").read_text("utf-8")),
        "io": {name: io[name] for name in io.files},
        "params": {
            name: {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}
            for name in ("pre_net", "post_net")
        },
        "table": table,
        "labels": class_indices(names, CLASSES),
    }


def packed_of(table):
    return pack(table.frames, table.starts, table.lengths)


def batch(case):
    """The case's batch of five utterances, padded: features float32[5, T, F] and mask."""
    table, rows = case["table"], case["io"]["batch_ids"]
    longest = int(table.lengths[rows].max())
    features = np.zeros((len(rows), longest, table.width), np.float32)
    for i, row in enumerate(rows):
        features[i, : table.lengths[row]] = table.utterance(row)
    return features, np.asarray(length_mask(table.lengths[rows], longest))


def test_every_array_is_compared(case):
    groups = ("grad__", "fold", "filtered_", "train_", "metric")
    assert {n for n in case["io"] if not n.startswith(groups)} == {
        *("sizes", "offsets", "labels", "batch_ids", "batch_padding_mask", "batch_logits"),
        *("batch_loss", "batch_shape", "all_logits", "lr_per_epoch", "momentum_per_epoch"),
    }


def test_reader_of_the_stacked_files(case):
    io, table = case["io"], case["table"]
    np.testing.assert_array_equal(table.lengths, io["sizes"])
    np.testing.assert_array_equal(table.starts, io["offsets"])
    np.testing.assert_array_equal(case["labels"], io["labels"])
    assert {name: i for i, name in enumerate(CLASSES)} == case["meta"]["label_dict"]
    short, names = read_stacked(case["folder"] / "train", min_frames=3, max_frames=12)
    np.testing.assert_array_equal(short.lengths, io["filtered_sizes"])
    np.testing.assert_array_equal(short.starts, io["filtered_offsets"])
    np.testing.assert_array_equal(class_indices(names, CLASSES), io["filtered_labels"])
    shorter, _ = read_stacked(case["folder"] / "train", min_frames=4, max_frames=11)
    assert len(shorter) < len(short)


def test_sessions_are_blocks_of_the_files(case):
    io, table = case["io"], case["table"]
    ends = np.cumsum(case["meta"]["sessions"])
    assert ends[-1] == len(table)
    for fold, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        np.testing.assert_array_equal([start, end], io[f"fold{fold}_test_range"])
        rest = table.take([*range(start), *range(end, len(table))])
        np.testing.assert_array_equal(rest.lengths, io[f"fold{fold}_rest_sizes"])
        np.testing.assert_array_equal(rest.starts, io[f"fold{fold}_rest_offsets"])
        train = int((1 - IEMOCAP.dev_share) * len(rest))
        counts = [train, len(rest) - train, end - start]
        np.testing.assert_array_equal(counts, io[f"fold{fold}_counts_train_valid_test"])
        first = table.utterance(start)[0]
        np.testing.assert_array_equal(first[:5], io[f"fold{fold}_test_first_feature"])
        assert (table.utterance(start - 1)[0][:5] != first[:5]).any()


def test_batch_scores_loss_and_gradients(case):
    io, tolerance = case["io"], case["meta"]["tolerance"]
    features, mask = batch(case)
    np.testing.assert_array_equal(features.shape, io["batch_shape"])
    np.testing.assert_array_equal(~mask, io["batch_padding_mask"])
    labels = case["labels"][io["batch_ids"]]

    def loss(params, mask):
        logits = jnp.asarray(DownstreamHead(256, 4).apply({"params": params}, features, mask))
        log_probs = jax.nn.log_softmax(logits)
        return -log_probs[jnp.arange(len(labels)), labels].mean(), logits

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, logits), grads = both(case["params"], mask)
    np.testing.assert_allclose(logits, io["batch_logits"], atol=tolerance["logits"])
    assert float(value) == pytest.approx(float(io["batch_loss"]), abs=tolerance["loss"])
    for name, got in (
        ("pre_net.weight", grads["pre_net"]["kernel"].T[:8]),  # the case keeps eight rows
        ("pre_net.bias", grads["pre_net"]["bias"]),
        ("post_net.weight", grads["post_net"]["kernel"].T),
        ("post_net.bias", grads["post_net"]["bias"]),
    ):
        np.testing.assert_allclose(got, io[f"grad__{name}"], atol=tolerance["grads"])
    (inverted, _), _ = both(case["params"], ~mask | (np.arange(mask.shape[1]) == 0))
    assert abs(float(inverted) - float(value)) > 1e-3


def test_scores_of_all_utterances_and_fold_metrics(case):
    io, table, tolerance = case["io"], case["table"], case["meta"]["tolerance"]
    logits = predict_logits(case["params"], packed_of(table), np.arange(len(table)), batch_size=7)
    np.testing.assert_allclose(logits, io["all_logits"], atol=tolerance["logits"])
    assert np.abs(logits[::-1] - io["all_logits"]).max() > 0.01
    guesses = logits.argmax(-1)
    for fold in range(5):
        start, end = io[f"fold{fold}_test_range"]
        # upstream divides by all four classes (and stops at one without targets)
        result = classification_metrics(case["labels"][start:end], guesses[start:end], CLASSES)
        assert not result["absent_in_targets"]
        got = [100 * result[name] for name in ("wa", "ua", "wf1")]
        np.testing.assert_allclose(got, io[f"fold{fold}_wa_ua_wf1"], atol=tolerance["metrics"])


def test_metrics_in_per_cent(case):
    io = case["io"]
    for name in ("metric", "metric2"):
        result = classification_metrics(io["metric_true"], io[f"{name}_pred"], CLASSES)
        got = [100 * result[key] for key in ("wa", "ua", "wf1")]
        np.testing.assert_allclose(
            got, io[f"{name}_wa_ua_wf1"], atol=case["meta"]["tolerance"]["metrics"]
        )
        swapped = classification_metrics(io[f"{name}_pred"], io["metric_true"], CLASSES)
        assert abs(100 * swapped["wf1"] - io[f"{name}_wa_ua_wf1"][2]) > 0.01


def test_learning_rate_and_momentum_of_every_epoch(case):
    io = case["io"]
    rates = IEMOCAP.learning_rates[0] * rate_factors(IEMOCAP)
    np.testing.assert_allclose(rates, io["lr_per_epoch"], atol=1e-15)
    np.testing.assert_allclose(momenta(IEMOCAP), io["momentum_per_epoch"], atol=1e-12)
    still = ProbeConfig(optimizer="rmsprop", schedule="constant")
    assert np.abs(momenta(still) - io["momentum_per_epoch"]).max() > 0.05
    assert np.abs(np.roll(rates, 1) - io["lr_per_epoch"]).max() > 1e-5


def train(case, momentum, epochs=6):
    table = case["table"]
    order = np.asarray(case["io"]["batch_ids"], np.int32)[None]
    state, losses = start_grid([case["params"]], IEMOCAP), []
    rates = IEMOCAP.learning_rates[0] * rate_factors(IEMOCAP)
    for epoch in range(epochs):
        state, loss = train_epoch(
            state,
            packed_of(table),
            jnp.asarray(case["labels"]),
            order,
            jnp.ones((1, 256)),
            np.float32([rates[epoch]]),
            np.float32(momentum[epoch]),
            optimizer=IEMOCAP.optimizer,
            clip_norm=IEMOCAP.clip_norm,
            capacity=int(table.lengths[order].sum()),
        )
        losses.append(float(loss[0, 0]))
    return losses, jax.tree.map(lambda leaf: leaf[0], state.params)


def test_six_epochs_of_rmsprop_with_cycling_momentum(case):
    io, tolerance = case["io"], case["meta"]["tolerance"]["train_trace"]
    losses, params = train(case, momenta(IEMOCAP))
    np.testing.assert_allclose(losses, io["train_loss"], atol=tolerance)
    weight = np.asarray(params["post_net"]["kernel"]).T
    np.testing.assert_allclose(weight, io["train_after_post_net_weight"], atol=tolerance)
    logits = predict_logits(params, packed_of(case["table"]), io["batch_ids"])
    np.testing.assert_allclose(logits, io["train_after_logits"], atol=tolerance)
    _, still = train(case, np.full(6, 0.9))
    wrong = predict_logits(still, packed_of(case["table"]), io["batch_ids"])
    assert np.abs(wrong - io["train_after_logits"]).max() > 10 * tolerance
