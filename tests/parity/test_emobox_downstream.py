"""EmoBox's downstream recipe against numbers of the published code (golden/downstream)."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import classification_metrics
from c2ser_jax.models.heads import DownstreamHead, length_mask, nonzero_sum_mask
from c2ser_jax.tasks.probe_grid import pack, start_grid, train_epoch
from c2ser_jax.tasks.probe_recipe import EMOBOX, ProbeConfig, rate_factors
from conversions.reader import read_state_dict
from tests.golden_roots import golden_cases

CASES = golden_cases("downstream/emobox_downstream")


def head_params(path):
    """torch's two Linear layers as `DownstreamHead` parameters."""
    weights = read_state_dict(path)
    return {
        name: {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}
        for name in ("pre_net", "post_net")
    }


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.parent.parent.parent.name)
def case(request):
    folder = request.param
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    io = np.load(folder / "io.npz", allow_pickle=False)
    return {
        "meta": meta,
        "io": {name: io[name] for name in io.files},
        "params": head_params(folder / "state_dict.pt"),
        "metrics": json.loads((folder / "metrics.json").read_text("utf-8")),
    }


@jax.jit
def logits(params, features, mask):
    hidden, classes = params["post_net"]["kernel"].shape
    return DownstreamHead(hidden, classes).apply({"params": params}, features, mask)


@jax.jit
def loss_and_grads(params, features, mask, labels):
    def loss(p):
        log_probs = jax.nn.log_softmax(jnp.asarray(logits(p, features, mask)))
        return -log_probs[jnp.arange(len(labels)), labels].mean()

    return jax.value_and_grad(loss)(params)


def test_every_array_is_compared(case):
    groups = ("grad__", "adam_", "lr_per_epoch", "zero_sum_frame_")
    named = {"in_feats", "lengths", "labels", "mask", "logits", "log_probs", "loss"}
    named |= {"logits_no_mask", "all_zero_logits"}
    assert {n for n in case["io"] if not n.startswith(groups)} == named


def test_masks_and_scores(case):
    io, tolerance = case["io"], case["meta"]["tolerance"]["logits"]
    features = io["in_feats"].astype(np.float32)
    mask = length_mask(io["lengths"], features.shape[1])
    np.testing.assert_array_equal(mask, io["mask"])
    np.testing.assert_array_equal(nonzero_sum_mask(features), io["mask"])
    got = logits(case["params"], features, mask)
    np.testing.assert_allclose(got, io["logits"], atol=tolerance)
    log_probs = jax.nn.log_softmax(jnp.asarray(got))
    np.testing.assert_allclose(log_probs, io["log_probs"], atol=tolerance)
    whole = np.ones_like(io["mask"])
    np.testing.assert_allclose(
        logits(case["params"], features, whole), io["logits_no_mask"], atol=tolerance
    )
    shifted = logits(case["params"], features, np.roll(mask, 1, axis=1))
    assert np.abs(np.asarray(shifted) - io["logits"]).max() > 100 * tolerance


def test_published_zero_sum_mask_only_on_request(case):
    io, tolerance = case["io"], case["meta"]["tolerance"]["logits"]
    features = io["zero_sum_frame_feats"].astype(np.float32)
    published = nonzero_sum_mask(features)
    np.testing.assert_array_equal(published, io["zero_sum_frame_mask"])
    lost = logits(case["params"], features, published)
    np.testing.assert_allclose(lost, io["zero_sum_frame_logits"], atol=tolerance)
    last = int(np.flatnonzero(io["zero_sum_frame_mask"][0])[-1]) + 1
    ours = logits(case["params"], features, length_mask([last], features.shape[1]))
    np.testing.assert_allclose(ours, io["zero_sum_frame_logits_with_length_mask"], atol=tolerance)
    assert np.abs(np.asarray(ours) - np.asarray(lost)).max() > 10 * tolerance
    # upstream gives NaN for an all-zero utterance; ours stays finite under either mask
    assert np.isnan(io["all_zero_logits"]).all()
    silent = np.zeros_like(features)
    assert not nonzero_sum_mask(silent).any()
    assert np.isfinite(logits(case["params"], silent, nonzero_sum_mask(silent))).all()
    assert np.isfinite(logits(case["params"], silent, np.ones_like(published))).all()


def test_loss_and_gradients(case):
    io, tolerance = case["io"], case["meta"]["tolerance"]
    features = io["in_feats"].astype(np.float32)
    mask = length_mask(io["lengths"], features.shape[1])
    loss, grads = loss_and_grads(case["params"], features, mask, io["labels"])
    assert float(loss) == pytest.approx(float(io["loss"]), abs=tolerance["loss"])
    for name in ("pre_net", "post_net"):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            expected = io[f"grad__{name}.{theirs}"]
            got = np.asarray(grads[name][ours])
            np.testing.assert_allclose(got.T, expected, atol=tolerance["grads"])
    wrong, _ = loss_and_grads(case["params"], features, mask, np.roll(io["labels"], 1))
    assert abs(float(wrong) - float(io["loss"])) > 100 * tolerance["loss"]


def train(case, rates, cfg, steps=5):
    """Repeats the case's one batch; returns (losses float[steps, G], post_net bias float[G, C])."""
    io = case["io"]
    lengths = io["lengths"]
    values = np.concatenate([f[:n] for f, n in zip(io["in_feats"], lengths, strict=True)])
    packed = pack(values.astype(np.float32), np.cumsum(lengths) - lengths, lengths)
    state = start_grid([case["params"]] * len(rates), cfg)
    order = np.tile(np.append(np.arange(len(lengths)), -1), (steps, 1)).astype(np.int32)
    units = jnp.ones((len(rates), case["meta"]["hidden"]))
    state, losses = train_epoch(
        state,
        packed,
        jnp.asarray(io["labels"]),
        order,
        units,
        np.asarray(rates, np.float32),
        np.float32(0),
        optimizer=cfg.optimizer,
        clip_norm=cfg.clip_norm,
        capacity=int(lengths.sum()) + 9,
    )
    return np.asarray(losses), np.asarray(state.params["post_net"]["bias"])


def test_five_adam_steps_of_both_rates_trained_together(case):
    tolerance, io = case["meta"]["tolerance"]["adam"], case["io"]
    rates = case["meta"]["grid"]["lr"]
    losses, biases = train(case, rates, EMOBOX)
    for g, rate in enumerate(rates):
        np.testing.assert_allclose(losses[:, g], io[f"adam_lr{rate}_loss"], atol=tolerance)
        expected = io[f"adam_lr{rate}_after_post_net_bias"]
        np.testing.assert_allclose(biases[g], expected, atol=tolerance)
    _, constant = train(case, rates, ProbeConfig(optimizer="rmsprop", schedule="constant"))
    assert np.abs(constant[0] - io[f"adam_lr{rates[0]}_after_post_net_bias"]).max() > 1e-3


def test_the_golden_steps_are_below_the_clip_and_a_tight_clip_changes_them(case):
    norm = np.sqrt(sum(np.square(v).sum() for n, v in case["io"].items() if n.startswith("grad__")))
    assert norm < EMOBOX.clip_norm
    # Adam forgets a gradient's scale, but not when it is clipped below its epsilon
    tight, _ = train(case, case["meta"]["grid"]["lr"], ProbeConfig(clip_norm=1e-8), steps=2)
    assert np.abs(tight[1, 0] - case["io"]["adam_lr0.001_loss"][1]) > 1e-4


def test_learning_rate_of_every_epoch(case):
    names = [n for n in case["io"] if n.startswith("lr_per_epoch")]
    assert len(names) == 3
    for name in names:
        rate, epochs = re.fullmatch(r"lr_per_epoch_lr([\d.]+)_E(\d+)", name).groups()
        expected = case["io"][name]
        cfg = ProbeConfig(schedule="emobox", epochs=int(epochs))
        np.testing.assert_allclose(float(rate) * rate_factors(cfg), expected, atol=1e-15)
        mended = ProbeConfig(schedule="warmup", epochs=int(epochs))
        assert np.abs(float(rate) * rate_factors(mended) - expected).max() > 1e-5


def test_metrics_of_every_published_example(case):
    tolerance = case["meta"]["tolerance"]["metrics"]
    assert len(case["metrics"]) == 11
    for name, example in case["metrics"].items():
        targets = [str(t) for t in example["targets"]]
        predictions = [str(p) for p in example["predictions"]]
        classes = sorted({*targets, *predictions})
        if "error" in example:
            with pytest.raises(UserError, match="nothing to score"):
                classification_metrics(targets, predictions, classes)
            continue
        result = classification_metrics(targets, predictions, classes)
        for metric in ("wa", "ua", "micro_f1", "macro_f1"):
            assert result[metric] == pytest.approx(example[metric], abs=tolerance), (name, metric)
        assert result["confusion"] == example["confusion"], name
        assert result["num"] == example["num"]
        assert result["report"] == example["report"], name
        if example["wa"] < 1:
            swapped = classification_metrics(predictions, targets, classes)
            assert swapped["confusion"] != example["confusion"], name
