"""A tiny task and a tiny dataset that exercise everything the loop does.

Shapes: B rows, N samples, F = 6 features, W = 10 wide, C = 4 classes.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from c2ser_jax.training.state import merge_params

FEATURES, WIDTH, CLASSES = 6, 10, 4


class TwoLayers(nn.Module):
    """Mean of the real frames, a hidden layer, dropout, logits; axes named as in real models."""

    @nn.compact
    def __call__(self, audio, samples, train):
        """Returns (hidden float32[B, W], logits float32[B, C]) of audio float32[B, N], int32[B]."""
        init = nn.initializers.lecun_normal()
        frames = audio.reshape(audio.shape[0], -1, FEATURES)
        real = jnp.arange(frames.shape[1])[None] * FEATURES < samples[:, None]
        x = jnp.sum(frames * real[..., None], 1) / jnp.maximum(jnp.sum(real, 1), 1)[:, None]
        x = nn.with_logical_constraint(x, ("batch", None))
        kernel = nn.with_logical_partitioning(init, ("embed_in", "width"))
        x = nn.Dense(WIDTH, name="encoder", kernel_init=kernel)(x)
        x = nn.with_logical_constraint(nn.gelu(x), ("batch", "width"))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        kernel = nn.with_logical_partitioning(init, ("width", "mlp"))
        return x, nn.Dense(CLASSES, name="proj", kernel_init=kernel)(x)


class FakeTask:
    """Cross entropy of labelled rows, distance to an averaged teacher, and a logged-only term."""

    name = "fake"
    weights = {"class": 1.0, "teacher": 0.5, "seen": 0.0}

    def __init__(self, ema_paths: str | None = None):
        self.ema_paths = ema_paths

    def init(self, key: jax.Array, batch: Any) -> Any:
        """Returns boxed parameters."""
        return TwoLayers().init(key, batch["audio"], batch["audio_samples"], False)["params"]

    def loss(self, trainable, frozen, ema, batch, key, step):
        """Returns the terms and metrics of one microbatch."""
        params = merge_params(trainable, frozen)
        run = lambda p, **rest: TwoLayers().apply({"params": p}, *inputs, **rest)  # noqa: E731
        inputs = (batch["audio"], batch["audio_samples"])
        hidden, logits = run(params, train=True, rngs={"dropout": key})
        labelled = batch["label"] >= 0
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["label"][:, None] % CLASSES, 1
        )
        terms = {
            "class": (-jnp.sum(picked[:, 0] * labelled), jnp.sum(labelled)),
            "seen": (jnp.sum(batch["audio_samples"]), jnp.float32(labelled.size)),
        }
        if ema is not None:
            teacher, _ = run(
                merge_params(ema, {}) if "proj" in ema else {**params, **ema}, train=False
            )
            distance = jnp.sum((hidden - jax.lax.stop_gradient(teacher)) ** 2)
            terms["teacher"] = (distance, jnp.float32(hidden.size))
        hit = jnp.sum((jnp.argmax(logits, -1) == batch["label"]) & labelled)
        return terms, {"accuracy": (hit, jnp.sum(labelled))}

    def predict(self, params, batch):
        """Returns the logits."""
        inputs = (batch["audio"], batch["audio_samples"])
        return {"logits": TwoLayers().apply({"params": params}, *inputs, False)[1]}


class FakeData:
    """Batches that are a pure function of (seed, step), in two lengths, some rows unlabelled.

    The batch of `poison_step` holds a NaN.
    """

    steps_per_epoch = 5

    def __init__(
        self,
        rows: int = 8,
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
        poison_step: int | None = None,
    ):
        self.poison_step = poison_step
        self.rows, self.seed, self.share = rows, seed, share
        self.fingerprint = f"fake-{rows}-{seed}"

    def batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        """Yields this share's rows of the batches from `start_step` on."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> dict[str, Any]:
        """Returns this share's rows of one batch."""
        rng = np.random.default_rng((self.seed, step))
        frames = (5, 8)[step % 2]
        index, count = self.share
        mine = slice(index * self.rows // count, (index + 1) * self.rows // count)
        label = rng.integers(-1, CLASSES, self.rows).astype(np.int32)
        audio = rng.normal(size=(self.rows, frames * FEATURES)).astype(np.float32)
        samples = rng.integers(FEATURES, frames * FEATURES, self.rows).astype(np.int32)
        signal = np.eye(CLASSES + 1, FEATURES, dtype=np.float32) * (np.arange(5) < CLASSES)[:, None]
        audio += np.tile(2 * signal[label], frames)
        if step == self.poison_step:
            audio[3, 0] = np.nan
        names = [f"step{step}row{row}" for row in range(self.rows)]
        return {
            "audio": audio[mine],
            "audio_samples": samples[mine],
            "label": label[mine],
            "id": names[mine],
        }
