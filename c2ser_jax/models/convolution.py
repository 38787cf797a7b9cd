"""The two convolutions of the emotion2vec family.

Shapes: B batch, N input length, T output length, K kernel, Cin and Cout channels, G groups.
"""

from jax import lax


def strided_conv(x, kernel, *, stride: int):
    """Convolves without padding: float[B, N, Cin], float[K, Cin, Cout] -> float[B, T, Cout].

    T = (N - K) // stride + 1.
    """
    return lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )


def grouped_conv(x, kernel, *, groups: int):
    """Convolves with zero padding that keeps the length, for odd K.

    float[B, T, Cin], float[K, Cin // G, Cout] -> float[B, T, Cout].
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )
