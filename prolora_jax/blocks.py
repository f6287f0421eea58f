"""Blocks of rank columns: a menu of widths, so that few programs are compiled for any catalog.

A block has one of the widths of `WIDTHS`, filled up with zero rows. Every row is on its own in
all products, and the same row gives the same bits at each of these widths, whatever its place and
its neighbours: so a file's numbers do not depend on the files it is migrated with.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from prolora_jax import layout
from prolora_jax.adapter import LoraModule

WIDTHS = (64, 512)
"""Rows of a block. On CPU a matmul gives a row other bits below 64 rows (measured, and tested)."""

RANK_STEP = 8
"""The smallest rank class; the others are its doubles. Zero rows pad a rank to its class."""


def rank_class(rank: int) -> int:
    """The smallest of 8, 16, 32, ... that is not below a rank."""
    size = RANK_STEP
    while size < rank:
        size *= 2
    return size


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


def rows_of(modules: Sequence[LoraModule], rank: int, places: int) -> tuple[np.ndarray, np.ndarray]:
    """The rank columns of the same module of some adapters as rows.

    Args:
        modules: one per adapter.
        rank: their rank class.
        places: of the block.

    Returns:
        `up.T` with the scale `(places, rank, out)`, and `down` `(places, rank, in)`, float32.
    """
    out, width = matrix_shape(modules[0])
    left = np.zeros((places, rank, out), np.float32)
    right = np.zeros((places, rank, width), np.float32)
    for i, module in enumerate(modules):
        left[i, : module.rank] = layout.up_to_matrix(module.up).T
        left[i, : module.rank] *= np.float32(module.scale)
        right[i, : module.rank] = layout.down_to_matrix(module.down)
    return left, right


def matrix_shape(module: LoraModule) -> tuple[int, int]:
    """(out, in) of the weight as a matrix."""
    return module.up.shape[0], int(np.prod(module.down.shape[1:]))
