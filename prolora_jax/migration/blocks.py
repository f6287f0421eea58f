"""Blocks of rank columns: a menu of widths, so that few programs are compiled for any catalog.

A block has one of the widths of `WIDTHS`, filled up with zero rows. Every row is on its own in
all products, and the same row gives the same bits at each of these widths, whatever its place and
its neighbours: so a file's numbers do not depend on the files it is migrated with.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import LoraModule

WIDTHS = (64, 512)
"""Rows of a block. On CPU a matmul gives a row other bits below 64 rows (measured, and tested)."""


def split_rows(adapters: int, rank: int) -> Iterator[tuple[int, int]]:
    """Blocks for some adapters of one rank class.

    Args:
        adapters: how many there are.
        rank: their rank class.

    Yields:
        (first adapter, places): wide blocks as long as they are filled, narrow ones for the rest.
        The last one may have more places than there are adapters left.
    """
    narrow, wide = (max(width // rank, 1) for width in WIDTHS)
    start = 0
    while start < adapters:
        # A wide block that is more than half full costs less than narrow ones.
        places = wide if 2 * (adapters - start) > wide else narrow
        yield start, places
        start += places


class Factors(NamedTuple):
    """The same module of some adapters, padded with zeros to a block; cast on the device.

    Attributes:
        up: `(places, out, rank)` in the modules' dtype where they share one of 16 bits.
        down: `(places, rank, in)`.
        scale: `(places,)` float32: `alpha / rank` of each adapter.
    """

    up: np.ndarray
    down: np.ndarray
    scale: np.ndarray


def stacked(modules: Sequence[LoraModule], rank: int, places: int) -> Factors:
    """The factors of the same module of some adapters, side by side.

    Args:
        modules: one per adapter.
        rank: their rank class.
        places: of the block.
    """
    out, width = matrix_shape(modules[0])
    dtypes = {factor.dtype for module in modules for factor in (module.up, module.down)}
    shared = dtypes.pop()
    dtype = np.dtype(np.float32) if dtypes or shared.itemsize != 2 else shared
    up = np.zeros((places, out, rank), dtype)
    down = np.zeros((places, rank, width), dtype)
    scale = np.zeros(places, np.float32)
    for i, module in enumerate(modules):
        up[i, :, : module.rank] = layout.up_to_matrix(module.up)
        down[i, : module.rank] = layout.down_to_matrix(module.down)
        scale[i] = module.scale
    return Factors(up, down, scale)


def matrix_shape(module: LoraModule) -> tuple[int, int]:
    """(out, in) of the weight as a matrix."""
    return module.weight_shape[0], int(np.prod(module.weight_shape[1:]))
