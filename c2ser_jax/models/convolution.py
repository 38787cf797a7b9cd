"""The two convolutions of the emotion2vec family, each in the form that is fast on its backend.

GPU and TPU run XLA's convolution and its gradients as they are. XLA:CPU hands a convolution to a
matrix product only when it is ungrouped, laid out [B, N, Cin] x [K, Cin, Cout], and for any
other layout when it stands outside every loop; the rest runs in a plain loop, 5 (grouped, backward)
to 100 times (any gradient inside a `lax.scan`) slower. So on CPU groups are convolved one by one
and gradients are written out in layouts it takes. The platform is chosen while lowering: a program
exported for another one holds that one's form. The CPU forms have reverse-mode gradients only.

Shapes: B batch, N input length, T output length, K kernel, Cin and Cout channels, G groups.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def strided_conv(x, kernel, *, stride: int):
    """Convolves without padding: float[B, N, Cin], float[K, Cin, Cout] -> float[B, T, Cout].

    T = (N - K) // stride + 1.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _strided_on_cpu(x, kernel, stride),
        default=lambda x, kernel: convolve(x, kernel, stride=stride),
    )


def grouped_conv(x, kernel, *, groups: int):
    """Convolves with zero padding that keeps the length, for odd K.

    float[B, T, Cin], float[K, Cin // G, Cout] -> float[B, T, Cout]: output channel c reads the
    input channels of group c // (Cout // G).
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _grouped_on_cpu(x, kernel, groups),
        default=lambda x, kernel: convolve(x, kernel, padding="SAME", groups=groups),
    )


Padding = str | Sequence[tuple[int, int]]


def convolve(
    x, kernel, *, stride=1, padding: Padding = "VALID", groups: int = 1, input_dilation: int = 1
):
    """XLA's convolution: float[B, N, Cin], float[K, Cin // G, Cout] -> float[B, T, Cout].

    `padding` is "VALID", "SAME" or [(before, behind)]; input_dilation - 1 zeros are put between
    the inputs before they are padded.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        padding,
        (input_dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def row_by_row(function, params, x, *, at_once: int = 80_000):
    """function(params, x) for rows that don't depend on each other, a few rows at a time on CPU.

    A stem's intermediates over a whole batch are hundreds of megabytes, which the operating system
    hands out afresh, zeroed, in every call; those of 5 s of audio stay near the processor. Over a
    batch of 25 s that saves 16 % of the time and all but a tenth of the memory. With
    gradients, on a mesh of several devices and off the CPU all rows are computed together.

    Args:
      function: pure, of (params, x float[b, N]) -> float[b, ...] for any b; it holds no tracers.
      params: any tree of arrays.
      x: float[B, N].
      at_once: rows are taken together up to so many elements of x.
    """
    B, N = x.shape
    rows = max(r for r in range(1, B + 1) if B % r == 0 and (r == 1 or r * N <= at_once))
    if rows == B or jax.sharding.get_abstract_mesh().size > 1:
        return function(params, x)
    return lax.platform_dependent(
        params, x, cpu=lambda params, x: _in_turn(function, rows, params, x), default=function
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_turn(function, rows: int, params, x):
    y = lax.map(lambda part: function(params, part), x.reshape(-1, rows, x.shape[1]))
    return y.reshape(x.shape[0], *y.shape[2:])


def _in_turn_forward(function, rows: int, params, x):
    return jax.vjp(function, params, x)


def _in_turn_backward(function, rows: int, backward, dy):
    return backward(dy)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _strided_on_cpu(x, kernel, stride: int):
    return convolve(x, kernel, stride=stride)


def _strided_forward(x, kernel, stride: int):
    return convolve(x, kernel, stride=stride), (x, kernel)


def _strided_backward(stride: int, saved, dy):
    x, kernel = saved
    K, Cin, Cout = kernel.shape
    B, T, _ = dy.shape
    used = (T - 1) * stride + 1
    behind = x.shape[1] - used
    dx = convolve(dy, _reversed(kernel), padding=[(K - 1, behind)], input_dilation=stride)
    taps = [lax.slice_in_dim(x, k, k + used, stride, 1).reshape(B * T, Cin) for k in range(K)]
    dy = dy.reshape(B * T, Cout)
    if Cin < 64:  # too narrow for a product of its own: one over all taps, 3 to 5 times as fast
        return dx, (jnp.concatenate(taps, -1).T @ dy).reshape(K, Cin, Cout)
    return dx, jnp.stack([tap.T @ dy for tap in taps])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grouped_on_cpu(x, kernel, groups: int):
    # A loop over groups and not G convolutions: as fast, and compiled once instead of G times.
    parts = lax.map(
        lambda part: convolve(*part, padding="SAME"), (_split(x, groups), _split(kernel, groups))
    )
    return _join(parts)


def _grouped_forward(x, kernel, groups: int):
    return _grouped_on_cpu(x, kernel, groups), (x, kernel)


def _grouped_backward(groups: int, saved, dy):
    pad = saved[1].shape[0] // 2

    def one_group(part):
        x, kernel, dy = part
        dx = convolve(dy, _reversed(kernel), padding="SAME")
        # Channels as the batch, rows as the channels: [Cin, T, B] x [T, B, Cout] -> [Cin, K, Cout].
        dk = convolve(x.transpose(2, 1, 0), dy.transpose(1, 0, 2), padding=[(pad, pad)])
        return dx, dk.transpose(1, 0, 2)

    dx, dk = lax.map(one_group, tuple(_split(a, groups) for a in (*saved, dy)))
    return _join(dx), _join(dk)


_in_turn.defvjp(_in_turn_forward, _in_turn_backward)
_strided_on_cpu.defvjp(_strided_forward, _strided_backward)
_grouped_on_cpu.defvjp(_grouped_forward, _grouped_backward)


def _reversed(kernel):
    """The kernel that carries gradients back: [K, Cin, Cout] -> [K, Cout, Cin], taps reversed."""
    return kernel[::-1].transpose(0, 2, 1)


def _split(x, groups: int):
    """[a, b, G * c] -> [G, a, b, c]."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], groups, -1), 2, 0)


def _join(parts):
    """[G, a, b, c] -> [a, b, G * c]."""
    joined = jnp.moveaxis(parts, 0, 2)
    return joined.reshape(*joined.shape[:2], -1)
