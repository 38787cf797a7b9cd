"""Parses the description of the convolutions, a Python expression that upstream evaluates."""

import ast
import warnings
from typing import Any

from c2ser_jax.errors import UserError
from c2ser_jax.models.emotion2vec_config import ConvLayer

MAX_SPEC_CHARACTERS = 2000
MAX_CONV_LAYERS = 64
_PUBLISHED_KERNELS = (10, 3, 3, 3, 3, 2, 2)
_PUBLISHED_STRIDES = (5, 2, 2, 2, 2, 2, 2)


def parse_conv_spec(spec: Any, where: str) -> tuple[ConvLayer, ...]:
    """Reads `[(512, 10, 5)] + [(512, 3, 2)] * 4` without evaluating it.

    Only lists, tuples, whole numbers, + of lists and list * number are understood; anything else
    raises `UserError`.
    """
    layers = spec
    if isinstance(spec, str):
        if len(spec) > MAX_SPEC_CHARACTERS:
            raise UserError(f"{where}: feature_encoder_spec is too long to be one")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layers = _literal(ast.parse(spec.strip(), mode="eval").body)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise UserError(
                f"{where}: feature_encoder_spec {spec[:60]!r} is not a plain list of "
                "(channels, kernel, stride); nothing was executed"
            ) from error
    made = []
    for layer in layers if isinstance(layers, list | tuple) else [None]:
        match layer:
            case (int(channels), int(kernel), int(stride)) if (
                0 < channels <= 65536 and 0 < kernel <= 1024 and 0 < stride <= 1024
            ):
                made.append(ConvLayer(channels, kernel, stride))
            case _:
                raise UserError(
                    f"{where}: feature_encoder_spec must list (channels, kernel, stride), "
                    f"not {layer!r:.40}"
                )
    return tuple(made)


def published_strides(layers: list[tuple[int, int]]) -> tuple[ConvLayer, ...] | None:
    """The stem for (channels, kernel) pairs with the published kernels, else None."""
    if tuple(kernel for _, kernel in layers) != _PUBLISHED_KERNELS:
        return None
    pairs = zip(layers, _PUBLISHED_STRIDES, strict=True)
    return tuple(ConvLayer(*pair, stride) for pair, stride in pairs)


def _literal(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.List(elts=items):
            return [_literal(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_literal(item) for item in items)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            a, b = _literal(left), _literal(right)
            if isinstance(a, list) and isinstance(b, list) and len(a) + len(b) <= MAX_CONV_LAYERS:
                return a + b
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            a, b = _literal(left), _literal(right)
            if isinstance(a, int) and isinstance(b, list):
                a, b = b, a
            if isinstance(a, list) and isinstance(b, int) and 0 <= b <= MAX_CONV_LAYERS:
                if len(a) * b <= MAX_CONV_LAYERS:
                    return a * b
    raise ValueError("not a plain list")
