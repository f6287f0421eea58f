"""Pairs of fused layers cut into those of their parts, and put together again; all of it exact.

Rows of `B` are rows of the layer, and every part shares `A`: cutting keeps the rank, but for
columns that are another part's. Parts with one `A` fuse back at their rank; others get the ranks of
all, with zeros in rows that are not theirs.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.adapters.formats.folding import folded


def cut(module: LoraModule, path: str, rows: range) -> LoraModule:
    """The pair of some rows of a layer, without the columns that have zeros in all of these rows.

    Factors are those of the layer, as views where no column is left out.
    """
    up = module.up[rows.start : rows.stop : rows.step]
    used = up.any(axis=0)
    if used.all() or not used.any():
        return replace(module, path=path, up=up)
    alpha = None if module.alpha is None else module.scale * int(used.sum())
    return replace(module, path=path, down=module.down[used], up=up[:, used], alpha=alpha)


def joined(
    path: str, parts: Sequence[LoraModule | None], rows: Sequence[int], origin: str
) -> LoraModule:
    """One pair for a layer that is made of others, row after row.

    Args:
        path: of the layer.
        parts: pairs of its parts in the order of their rows, at least one; None for no update.
        rows: number of rows of each part.
        origin: the file, for messages.

    Returns:
        The pair. Factors keep their numbers where all parts have one scale.
    """
    given = [part for part in parts if part is not None]
    alike = given if len({part.scale for part in given}) == 1 else scaled_alike(given, origin)
    dtypes = common_dtype([a.down for a in alike]), common_dtype([a.up for a in alike])
    alike = [replace(a, down=a.down.astype(dtypes[0], copy=False)) for a in alike]
    left = iter(alike)
    placed = [None if part is None else next(left) for part in parts]
    first = alike[0]
    if all(np.array_equal(first.down, other.down) for other in alike[1:]):
        blocks = [
            np.zeros((n, first.rank)) if part is None else part.up
            for part, n in zip(placed, rows, strict=True)
        ]
        whole = np.concatenate([block.astype(dtypes[1], copy=False) for block in blocks])
        return replace(first, path=path, up=whole)
    rank = sum(part.rank for part in alike)
    up = np.zeros((sum(rows), rank), dtypes[1])
    row = column = 0
    for part, n in zip(placed, rows, strict=True):
        if part is not None:
            up[row : row + n, column : column + part.rank] = part.up
            column += part.rank
        row += n
    alpha = None if first.alpha is None else first.scale * rank
    return LoraModule(path, np.concatenate([part.down for part in alike]), up, alpha)


def placed_rows(module: LoraModule, orders: Sequence[range]) -> LoraModule:
    """A pair of `joined` with its rows where the layer has those of each part.

    Args:
        module: part after part.
        orders: rows of the layer that each part has.
    """
    up = np.empty_like(module.up)
    first = 0
    for rows in orders:
        up[rows.start : rows.stop : rows.step] = module.up[first : first + len(rows)]
        first += len(rows)
    return replace(module, up=up)


def common_dtype(arrays: Sequence[np.ndarray]) -> np.dtype:
    """The narrowest dtype that holds what any of some arrays holds; as of `StructuredModule`."""
    found = {array.dtype for array in arrays}
    return found.pop() if len(found) == 1 else reduce(np.promote_types, found, np.dtype("f4"))


def scaled_alike(modules: Sequence[LoraModule], origin: str) -> list[LoraModule]:
    """The same updates with a scale of 1, which is multiplied into the factors (`folding`)."""
    return [folded(module, origin) for module in modules]
