"""Numbers of 8 bits times scales on a grid: one for the weight, for each row, or for each block."""

import math
from collections.abc import Mapping
from functools import cache

import ml_dtypes
import numpy as np

from prolora_jax.io.containers.packed.packed_weight import PackedWeight, StoredTensor

FLOAT8_DTYPES = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
FLOAT8 = tuple(FLOAT8_DTYPES)
"""Names of the floats of 8 bits that are read."""


def scaled(
    packing: str,
    parts: Mapping[str, StoredTensor],
    block: tuple[int, int],
    dtype: np.dtype,
    *,
    is_linear: bool = False,
) -> PackedWeight:
    """A weight that is `(number - zero point) · scale`, in float32, and then rounded.

    Args:
        packing: its name.
        parts: `weight`, `scale` and, of whole numbers, `zero_point`; the last two have one number
            for each block, row by row.
        block: rows and columns that share a scale.
        dtype: what is rounded to.
        is_linear: see `PackedWeight`.
    """
    numbers, scale, zero = parts["weight"], parts["scale"], parts.get("zero_point")
    shape = numbers.shape
    rows, columns = shape[0], math.prod(shape[1:])
    down, across = block
    grid = -(-rows // down), -(-columns // across)

    def spread(stored: StoredTensor, top: int, bottom: int) -> np.ndarray:
        """What is stored of each block, for each number of some rows."""
        first, end = top // down, -(-bottom // down)
        held = stored.numbers(first * grid[1], end * grid[1]).astype(np.float32)
        held = held.reshape(-1, grid[1])[np.arange(top, bottom) // down - first]
        return held if grid[1] == 1 else np.repeat(held, across, axis=1)[:, :columns]

    def unpack(first: int, end: int) -> np.ndarray:
        top, bottom = first // columns, end // columns
        found = _as_float32(numbers.numbers(first, end)).reshape(-1, columns)
        if zero is not None:
            found -= spread(zero, top, bottom)
        found *= spread(scale, top, bottom)
        return found.reshape(-1).astype(dtype, copy=False)

    return PackedWeight(packing, parts, shape, dtype, unpack, columns, is_linear)


def _as_float32(numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype.name not in FLOAT8_DTYPES:
        return numbers.astype(np.float32)
    # Looked up: a cast takes ten times as long.
    return np.take(_table(numbers.dtype.name), numbers.view(np.uint8))


@cache
def _table(dtype: str) -> np.ndarray:
    """The float of each byte."""
    return np.arange(256, dtype=np.uint8).view(FLOAT8_DTYPES[dtype]).astype(np.float32)
