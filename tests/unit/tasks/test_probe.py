import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from c2ser_jax.errors import UserError
from c2ser_jax.evaluation.metrics import confusion_matrix, scores_from_confusion
from c2ser_jax.models.heads import DownstreamHead
from c2ser_jax.tasks.probe import mean_recall, predict_logits, train_grid
from c2ser_jax.tasks.probe_grid import (
    epoch_orders,
    frame_capacity,
    init_points,
    narrow_params,
    pack,
    start_grid,
    train_epoch,
)
from c2ser_jax.tasks.probe_recipe import EMOBOX, ProbeConfig, momenta, rate_factors

COUNT, WIDTH, CLASSES = 44, 6, 3
SMALL = ProbeConfig(
    learning_rates=(3e-2, 3e-3), hidden=(4, 9), epochs=3, batch_size=7, schedule="constant"
)


@pytest.fixture(scope="module")
def data():
    """Utterances of 1 … 12 frames whose class shifts some features: (packed, labels, clips)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, COUNT)
    lengths = rng.integers(1, 13, COUNT)
    direction = rng.standard_normal((CLASSES, WIDTH))
    clips = [
        (rng.standard_normal((n, WIDTH)) + 1.5 * direction[c] + 2).astype(np.float32)
        for n, c in zip(lengths, labels, strict=True)
    ]
    packed = pack(np.concatenate(clips), np.cumsum(lengths) - lengths, lengths)
    return packed, labels, clips


ROOM = 112  # packed frames of a batch; one size for all runs compiles one program
TRAIN, DEV = np.arange(0, 30), np.arange(30, 38)


def run(data, cfg, **kwargs):
    packed, labels, _ = data
    arguments = {"train": TRAIN, "dev": DEV, "classes": CLASSES, "cfg": cfg, "seed": 5}
    return train_grid(packed, labels, **{**arguments, "capacity": ROOM, **kwargs})


@pytest.fixture(scope="module")
def trained(data):
    return run(data, SMALL)


def test_a_padded_narrow_head_trains_exactly_as_the_narrow_head(data, trained):
    plain = run(data, ProbeConfig(**{**vars(SMALL), "hidden": (4,)}))
    narrow = [i for i, (_, hidden) in enumerate(SMALL.points) if hidden == 4]
    for name in ("train_losses", "dev_losses", "dev_scores"):
        got, expected = getattr(trained, name), getattr(plain, name)
        np.testing.assert_allclose(got[narrow], expected, atol=2e-6)
    wide = [i for i, (_, hidden) in enumerate(SMALL.points) if hidden == 9]
    assert np.abs(trained.dev_losses[wide] - plain.dev_losses).max() > 1e-3


def test_switched_off_units_stay_exactly_zero_through_training(data):
    packed, labels, _ = data
    cfg = SMALL
    state = start_grid(init_points(cfg, WIDTH, CLASSES, 0), cfg)
    units = jnp.asarray([[i < hidden for i in range(9)] for _, hidden in cfg.points], jnp.float32)
    orders = epoch_orders(TRAIN, cfg, 0)
    rates = np.float32([rate for rate, _ in cfg.points])
    kwargs = {"optimizer": "adam", "clip_norm": cfg.clip_norm, "capacity": ROOM}
    start = jax.tree.map(np.asarray, state.params)
    state, _ = train_epoch(
        state, packed, jnp.asarray(labels), orders[0], units, rates, np.float32(0), **kwargs
    )
    params = jax.tree.map(np.asarray, state.params)
    for point, (_, hidden) in enumerate(cfg.points):
        if hidden == 4:
            assert not params["pre_net"]["kernel"][point, :, 4:].any()
            assert not params["pre_net"]["bias"][point, 4:].any()
            assert not params["post_net"]["kernel"][point, 4:].any()
        moved = narrow_params(jax.tree.map(lambda leaf, g=point: leaf[g], params), hidden)
        before = narrow_params(jax.tree.map(lambda leaf, g=point: leaf[g], start), hidden)
        assert all(
            np.abs(a - b).min() > 0
            for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(before), strict=True)
        )


def by_hand(data, cfg, rate, hidden, seed):
    """The recipe as a plain loop over padded batches with optax.adam: losses per epoch, params."""
    _, labels, clips = data
    head, params = DownstreamHead(hidden, CLASSES), None
    for (_, width), start in zip(cfg.points, init_points(cfg, WIDTH, CLASSES, seed), strict=True):
        params = start if width == hidden else params
    optimizer = optax.chain(optax.clip_by_global_norm(cfg.clip_norm), optax.adam(rate))
    state, history = optimizer.init(params), []
    longest = max(map(len, clips))

    @jax.jit
    def step(params, state, features, mask, target, real):
        def loss(p):
            log_probs = jax.nn.log_softmax(head.apply({"params": p}, features, mask))
            picked = log_probs[jnp.arange(len(target)), target]
            return -(picked * real).sum() / real.sum()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for order in epoch_orders(TRAIN, cfg, seed):
        losses = []
        for rows in order:
            if (rows < 0).all():
                continue
            features = np.zeros((len(rows), longest, WIDTH), np.float32)
            mask = np.zeros((len(rows), longest), bool)
            for i, row in enumerate(rows[rows >= 0]):
                features[i, : len(clips[row])] = clips[row]
                mask[i, : len(clips[row])] = True
            params, state, value = step(params, state, features, mask, labels[rows], rows >= 0)
            losses.append(float(value))
        history.append(np.mean(losses))
    return np.array(history), params


def test_the_grid_equals_a_plain_loop_over_padded_batches(data, trained):
    for point, (rate, hidden) in enumerate(SMALL.points[:2]):
        expected, _ = by_hand(data, SMALL, rate, hidden, seed=5)
        np.testing.assert_allclose(trained.train_losses[point], expected, atol=1e-5)
    assert np.abs(trained.train_losses[2] - expected).max() > 1e-3


def test_training_learns_and_keeps_the_best_development_epoch(data, trained):
    packed, labels, _ = data
    best = trained.dev_scores.max(1)
    for point, epoch in enumerate(trained.best_epochs):
        assert trained.dev_scores[point, epoch - 1] == best[point]
    assert trained.best_score == best.max() == best[trained.chosen]
    logits = predict_logits(trained.params, packed, DEV, batch_size=3)
    assert mean_recall(logits, labels[DEV]) == pytest.approx(trained.best_score)
    assert trained.train_losses[0, -1] < trained.train_losses[0, 0]


def test_test_labels_play_no_part(data, trained):
    packed, labels, _ = data
    others = labels.copy()
    others[38:] = (others[38:] + 1) % CLASSES
    again = run((packed, others, None), SMALL)
    np.testing.assert_array_equal(again.dev_scores, trained.dev_scores)
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
    others[DEV] = (others[DEV] + 1) % CLASSES
    assert (run((packed, others, None), SMALL).dev_scores != trained.dev_scores).any()


def test_spare_capacity_changes_nothing_but_the_seed_does(data, trained):
    lengths = np.asarray(data[0].lengths)
    assert frame_capacity(epoch_orders(TRAIN, SMALL, 5), lengths) < ROOM
    roomy = run(data, SMALL, capacity=400)
    np.testing.assert_allclose(roomy.dev_losses, trained.dev_losses, atol=2e-6)
    assert np.abs(run(data, SMALL, seed=6).dev_losses - trained.dev_losses).max() > 1e-3


def test_standardizing_equals_training_on_scaled_features(data):
    packed, labels, clips = data
    cfg = ProbeConfig(**{**vars(SMALL), "standardize": True})
    seen = np.concatenate([clips[row] for row in TRAIN]).astype(np.float64)
    mean, deviation = seen.mean(0), seen.std(0)
    scaled = packed._replace(
        values=jnp.asarray((np.asarray(packed.values) - mean) / deviation, jnp.float32)
    )
    got, expected = run(data, cfg), run((scaled, labels, None), SMALL)
    np.testing.assert_allclose(got.dev_losses, expected.dev_losses, atol=1e-4)
    rows = np.arange(38, COUNT)
    logits = predict_logits(got.params, packed, rows)  # for features as they were given
    np.testing.assert_allclose(logits, predict_logits(expected.params, scaled, rows), atol=1e-3)


def test_every_epoch_visits_each_utterance_once():
    rows = np.array([3, 4, 8, 9, 11, 15, 20, 21, 30])
    orders = epoch_orders(rows, SMALL, seed=1)
    assert orders.shape == (3, 8, 7)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order[order >= 0]), rows)
    assert (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(orders, epoch_orders(rows, SMALL, seed=1))


def test_capacity_holds_the_largest_batch_and_hardly_more():
    lengths = np.random.default_rng(0).integers(50, 400, 300)
    orders = epoch_orders(np.arange(300), ProbeConfig(epochs=20), seed=0)
    needed = max(lengths[b[b >= 0]].sum() for order in orders for b in order)
    capacity = frame_capacity(orders, lengths)
    assert needed <= capacity <= 1.07 * needed


def test_mean_recall_equals_the_evaluation_metric():
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((3, 20, 4)), rng.integers(0, 3, 20)
    for scores, got in zip(logits, mean_recall(logits, labels), strict=True):
        expected = scores_from_confusion(confusion_matrix(labels, scores.argmax(-1), 4))["ua"]
        assert got == pytest.approx(float(expected))


def test_the_default_schedule_has_no_dead_epoch():
    factors = rate_factors(ProbeConfig())
    assert factors[0] == 0.1 and factors[9] == 1 and factors.max() == 1 and factors.min() > 0
    assert (np.diff(factors[:10]) > 0).all() and (np.diff(factors[9:]) < 0).all()
    for epochs in (1, 2, 5, 30):
        short = rate_factors(ProbeConfig(epochs=epochs))
        assert short.shape == (epochs,) and short.max() == 1 and short.min() > 0
    assert rate_factors(EMOBOX)[1] == 0
    assert not momenta(ProbeConfig()).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"hidden": ()}, "hidden is"),
        ({"learning_rates": (1e-3, 0.0)}, "learning_rates is"),
        ({"dev_share": 1.0}, "dev_share"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"momentum": (0.9, 0.8)}, "momentum"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        ProbeConfig(**change)


def test_training_without_development_or_hope_is_refused(data):
    with pytest.raises(UserError, match="30 training and 0 development"):
        run(data, SMALL, dev=np.array([], int))
    packed, labels, _ = data
    broken = packed._replace(values=packed.values.at[5].set(np.nan))
    with pytest.raises(UserError, match="never finite"):
        run((broken, labels, None), SMALL, dev=np.arange(0, 8))
