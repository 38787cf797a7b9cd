"""The two convolutions of the emotion2vec family, each in the form that is fast on its backend.

Shapes: B batch, N input length, T output length, K kernel, Cin and Cout channels, G groups.
"""

import jax.numpy as jnp
from jax import lax


def strided_conv(x, kernel, *, stride: int):
    """Convolves without padding: float[B, N, Cin], float[K, Cin, Cout] -> float[B, T, Cout].

    T = (N - K) // stride + 1.
    """
    # XLA's own convolution on every backend: on a CPU it runs at the rate of a matrix product
    # (0.9 to 1.0 of it over 512 channels), where strided slices and products lose a third.
    return _convolve(x, kernel, stride, "VALID")


def grouped_conv(x, kernel, *, groups: int):
    """Convolves with zero padding that keeps the length, for odd K.

    float[B, T, Cin], float[K, Cin // G, Cout] -> float[B, T, Cout]: output channel c reads the
    input channels of group c // (Cout // G). The platform is chosen while lowering, so a program
    exported for another one gets that one's form.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _convolve_by_group(x, kernel, groups),
        default=lambda x, kernel: _convolve(x, kernel, 1, "SAME", groups),
    )


def _convolve_by_group(x, kernel, groups: int):
    """G ordinary convolutions beside each other.

    XLA:CPU hands an ordinary convolution and its gradients to a matrix product, but runs the
    gradients of a grouped one in a plain loop: 768 channels in 16 groups, K = 19, cost 5 times as
    much forward and backward.
    """
    pairs = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([_convolve(part, weights, 1, "SAME") for part, weights in pairs], -1)


def _convolve(x, kernel, stride: int, padding: str, groups: int = 1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        padding,
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
