"""Adds adapters into the kernels they adapt while a conversion streams, some rows at a time.

Shapes: L layers, O output and I input features, R rank.
"""

from collections.abc import Iterable

import numpy as np

from conversions.engine import Plan

_BLOCK_BYTES = 32 << 20


class MergedPlan(Plan):
    """A plan whose adapted kernels [L, O, I] hold kernel + scale * (lora_a @ lora_b) transposed.

    The sum is formed in float32 and rounded to the kernel's type. Factors are no parameters of it.
    """

    def __init__(self, whole: Plan, scale: float):
        self._whole, self._scale = whole, scale
        factors = [path for path in whole.shapes if path.endswith(("/lora_a", "/lora_b"))]
        self._adapted = {path.rsplit("/", 1)[0] + "/kernel" for path in factors}
        shapes = {path: shape for path, shape in whole.shapes.items() if path not in factors}
        super().__init__(shapes, whole.parts, whole.keeps_half)

    def _gather(self, path: str) -> np.ndarray:
        leaf = super()._gather(path)
        if path in self._adapted:
            folder = path.removesuffix("kernel")
            a, b = (self._whole._gather(folder + name) for name in ("lora_a", "lora_b"))
            for kernel, down, up in zip(leaf, a, b, strict=True):  # [O, I], [I, R], [R, O]
                for rows in _row_blocks(kernel.shape):
                    delta = up.T[rows] @ down.T
                    kernel[rows] = kernel[rows].astype(np.float32) + self._scale * delta
        return leaf


def _row_blocks(shape: tuple[int, ...]) -> Iterable[slice]:
    step = max(1, _BLOCK_BYTES // (4 * shape[1]))
    return (slice(start, start + step) for start in range(0, shape[0], step))
