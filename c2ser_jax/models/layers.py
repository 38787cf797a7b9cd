"""The small layers every model shares: dense, layer normalisation, dropout, two-layer perceptron.

Shapes: I input features, O output features, D width, R rank. Parameters are float32 unless a
`param_dtype` says otherwise; `dtype` is what a layer computes in. Each parameter carries one
logical axis name per dimension.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint, with_logical_partitioning
from jax import lax

from c2ser_jax.models.lora import LoraConfig

TORCH_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""torch's default for Linear and Conv weights: uniform within 1 / sqrt(fan_in)."""

SUM_BLOCK = 8
"""XLA:CPU sums a product's terms in blocks of so many at most, and the rest in another order."""


def full_precision(dtype: Any) -> AbstractContextManager:
    """Context in which products of float32 operands keep float32 precision on every backend.

    Accelerators otherwise round the operands of a float32 product (TF32, bfloat16 passes), which
    costs three digits of a feature. For other dtypes nothing changes.
    """
    if jnp.dtype(dtype) == jnp.float32:
        return jax.default_matmul_precision("highest")
    return nullcontext()


def parameter(
    module: nn.Module, name: str, init: Callable, shape, axes, dtype: Any = jnp.float32
) -> Any:
    """A parameter of `module`, one logical axis name (or None) per dimension of `shape`."""
    stored = nn.meta.unbox(module.get_variable("params", name))
    if stored is not None and stored.shape == tuple(shape):
        return stored  # `param` would trace `init` anew to compare the shapes
    return module.param(name, with_logical_partitioning(init, axes), tuple(shape), dtype)


@jax.custom_jvp
def rounded(x):
    """x itself, rounded to its dtype before its next use, whatever the compiler fuses.

    XLA:CPU contracts `a * b + c` into one instruction where both operations land in one kernel,
    which depends on the batch's shape: an utterance's last bits would depend on its neighbours. A
    maximum with the lowest number stands between them; the compiler keeps it, where it removes
    an `optimization_barrier`. The derivative is the identity's.
    """
    return jnp.maximum(x, jnp.finfo(x.dtype).min)


@rounded.defjvp
def _rounded_jvp(primals, tangents):
    return rounded(*primals), tangents[0]


def reciprocal_root(x):
    """1 / sqrt(x) with the same bits in every batch.

    `lax.rsqrt`, to which XLA rewrites 1 / sqrt, has a vector and a scalar form on CPU that differ
    in the last bit, and the shape decides which one runs.
    """
    return 1.0 / rounded(jnp.sqrt(x))


def ordered_sum(x):
    """Sums the middle axis of float32[B, T, D] in the same order in every batch: float32[B, D].

    XLA:CPU adds a plain sum's terms in an order that depends on B and T. A product with ones over a
    multiple of SUM_BLOCK terms adds them in theirs, and zeros behind them change nothing.
    """
    B, T, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, -T % SUM_BLOCK), (0, 0)))
    with full_precision(jnp.float32):
        return jnp.matmul(jnp.ones((B, 1, x.shape[1]), jnp.float32), x)[:, 0]


def layer_norm(x, scale=None, bias=None, *, epsilon: float):
    """Normalises the last axis in float32, biased variance in two passes.

    x float[..., D], scale and bias float[D] or None -> x's dtype.
    """
    y = x.astype(jnp.float32)
    y = y - rounded(y.mean(-1, keepdims=True))
    y = y * reciprocal_root(rounded(jnp.square(y).mean(-1, keepdims=True)) + epsilon)
    if scale is not None:
        y = rounded(y * scale)
    if bias is not None:
        y = y + bias
    return y.astype(x.dtype)


@jax.custom_jvp
def gelu(x):
    """x Phi(x) through erf, as torch computes its default form; computed in float32 at least.

    `jax.nn.gelu(approximate=False)` goes through erfc, which takes XLA:CPU 2.4 times as long and
    is no nearer to torch (9.5e-7 from the exact value here, 1.2e-6 in torch).
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    """Keeps one array for the backward pass, the derivative, where tracing would keep three."""
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    cdf = _normal_cdf(wide)
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) * (2.0 * math.pi) ** -0.5
    return (wide * cdf).astype(x.dtype), slope.astype(x.dtype) * tangent


def _normal_cdf(x):
    return 0.5 * lax.erf(x * 2.0**-0.5) + 0.5


def dropout(x, rate: float, key):
    """Zeroes elements of x with probability `rate` and scales the rest; `key` None: x itself."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with learned `scale` and `bias`."""

    epsilon: float
    axis: str = "width"

    @nn.compact
    def __call__(self, x):
        """Returns x normalised, same shape and dtype."""
        shape, axes = x.shape[-1:], (self.axis,)
        scale = parameter(self, "scale", nn.initializers.ones_init(), shape, axes)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), shape, axes)
        return layer_norm(x, scale, bias, epsilon=self.epsilon)


class Dense(nn.Module):
    """x @ kernel + bias, `axes` naming the input and the output dimension of the kernel.

    `out_first` stores the kernel as [O, I], which a product with few rows reads in order: such a
    product takes XLA:CPU half the time, and the layout is torch's. With `lora` the output has
    alpha / rank * (dropout(x) @ lora_a @ lora_b) added, the factors float32[I, R], float32[R, O].
    """

    features: int
    axes: tuple[str | None, str | None]
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.normal(0.02)
    use_bias: bool = True
    param_dtype: Any = jnp.float32
    out_first: bool = False
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Maps float[..., I] to dtype[..., O]; `train` drops inputs of the adapter."""
        order = -1 if self.out_first else 1
        shape, axes = (x.shape[-1], self.features)[::order], self.axes[::order]
        kernel = parameter(self, "kernel", self.kernel_init, shape, axes, self.param_dtype)
        # One matrix: with two leading axes XLA:CPU takes the backward pass 3 times as long.
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        with full_precision(self.dtype):
            y = _product(rows, kernel.astype(self.dtype), self.out_first)
        if self.use_bias:
            zeros = nn.initializers.zeros_init()
            shape, axes = (self.features,), self.axes[1:]
            bias = parameter(self, "bias", zeros, shape, axes, self.param_dtype)
            y = y + bias.astype(self.dtype)
        if self.lora is not None:
            y = y + self._adapter(rows, self.lora, train)
        return y.reshape(*x.shape[:-1], self.features)

    def _adapter(self, rows, lora: LoraConfig, train: bool):
        """dtype[N, O] that the adapter adds for rows dtype[N, I]."""
        shape_a, shape_b = (rows.shape[-1], lora.rank), (lora.rank, self.features)
        a = parameter(self, "lora_a", TORCH_UNIFORM, shape_a, (self.axes[0], "rank"))
        zeros = nn.initializers.zeros_init()
        b = parameter(self, "lora_b", zeros, shape_b, ("rank", self.axes[1]))
        drops = train and lora.dropout > 0.0
        rows = dropout(rows, lora.dropout, self.make_rng("dropout") if drops else None)
        with full_precision(self.dtype):
            low = jnp.dot(rows, a.astype(self.dtype)) * jnp.asarray(lora.scale, self.dtype)
            return jnp.dot(low, b.astype(self.dtype))


def _product(rows, kernel, out_first: bool):
    """rows [N, I] times kernel [I, O], or [O, I] with `out_first`: [N, O]."""
    axis = 1 if out_first else 0
    return lax.dot_general(rows, kernel, (((1,), (axis,)), ((), ())))


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), with dropout after both as timm's Mlp has it."""

    hidden: int
    dtype: Any = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Maps float[B, S, D] to the same shape."""
        drops = train and self.dropout > 0.0
        key1, key2 = jax.random.split(self.make_rng("dropout")) if drops else (None, None)
        h = gelu(Dense(self.hidden, ("width", "mlp"), self.dtype, name="fc1")(x))
        h = with_logical_constraint(h, ("batch", "time", "mlp"))
        h = dropout(h, self.dropout, key1)
        y = Dense(x.shape[-1], ("mlp", "width"), self.dtype, name="fc2")(h)
        return dropout(y, self.dropout, key2)
