"""DoRA: the sum of the weight and a low-rank update gets new row norms (arXiv 2402.09353).

`update = m * (W + BA) / norm(W + BA) - W`: the source's weight W decides, and the update has full
rank. The magnitude m is one number per output row, or, in LyCORIS's older files, per input column
(formats.md 2.2); its shape says which.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Parts,
    Shape,
    double,
    flat_in,
    scale_of,
    shapes_of,
)

_ENDS = {
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".magnitude": "magnitude",
}
_FACTORS = {"down": "down", "up": "up"}
_NEEDS = frozenset({"down", "up", "magnitude"})


def _rank(parts: Parts) -> int:
    return parts["down"].shape[0]


def _matrix_shape(parts: Parts) -> tuple[int, int]:
    return parts["up"].shape[0], int(np.prod(parts["down"].shape[1:]))


def _bound(_: Parts, shape: tuple[int, int]) -> int:
    return min(shape)


def _is_per_row(magnitude: np.ndarray, shape: Shape) -> bool | None:
    """Whether it has one number per output row; False per input channel; None for neither.

    peft writes `(out,)`, or `(1, out, 1, 1)` for a convolution; LyCORIS and kohya `(out, 1, ...)`
    or `(1, in, ...)`. Of a square weight the axis that has the numbers tells, but peft's
    convolutions, which are told by their kernel: LyCORIS's column norms have `(1, in, 1, 1)`, too,
    and then only a layer with in != out tells them apart.
    """
    out, width = shape[:2]
    size = magnitude.size
    if magnitude.ndim == 1:
        return True if size == out else None
    if magnitude.shape[0] == size == out:
        return True
    if magnitude.shape[:2] == (1, width) and size == width:
        return False
    return True if magnitude.shape[:2] == (1, out) and size == out else None


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts, (out, width) = module.parts, flat_in(shape)
    rank = _rank(parts)
    down, up = parts["down"].shape, parts["up"].shape
    if int(np.prod(down[1:])) != width or up[:2] != (out, rank) or set(up[2:]) > {1}:
        return Misfit(shapes_of(parts), f"down (rank, in) and up (out, rank) of a weight {shape}")
    if _is_per_row(parts["magnitude"], shape) is None:
        expected = f"one number for each of {out} rows, ({out}, 1), or for each of {shape[1]}"
        return Misfit(shapes_of(parts), f"{expected} input channels, (1, {shape[1]})")
    return None


def _update(module: StructuredModule, shape: Shape, weight: np.ndarray | None) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    parts = module.parts
    rank = _rank(parts)
    up, down = double(parts["up"]).reshape(-1, rank), double(parts["down"]).reshape(rank, -1)
    whole = weight + scale_of(module, rank) * (up @ down)
    magnitude = double(parts["magnitude"]).reshape(-1)
    if _is_per_row(parts["magnitude"], shape):
        sizes = np.linalg.norm(whole, axis=1)
        return whole * _ratio(magnitude, sizes)[:, None] - weight
    window = whole.reshape(shape[0], shape[1], -1)
    sizes = np.sqrt(np.square(window).sum(axis=(0, 2)))
    return (window * _ratio(magnitude, sizes)[None, :, None]).reshape(whole.shape) - weight


def _ratio(magnitude: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Of the new norms to the old ones; a row of zeros stays one."""
    return np.divide(magnitude, sizes, out=np.zeros_like(sizes), where=sizes > 0)


DORA = Algorithm(
    "dora",
    "DoRA",
    _ENDS | _FACTORS,
    (_NEEDS,),
    _rank,
    _matrix_shape,
    _bound,
    _misfit,
    _update,
    needs_weight=True,
)
