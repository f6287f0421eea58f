"""Pairs of fused layers cut into those of their parts, and put together again; all of it exact.

Rows of `B` are rows of the layer, and every part shares `A`: cutting keeps the rank, but for
columns that are another part's. Parts with one `A` fuse back at their rank; others get the ranks of
all, with zeros in rows that are not theirs.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.adapters.formats.folding import folded

Segments = Sequence[tuple[int, int]]
"""First row and end of each piece of a layer, in order."""


def cut(module: LoraModule, path: str, segments: Segments) -> LoraModule:
    """The pair of some rows of a layer, without the columns that have zeros in all of these rows.

    Factors are those of the layer, as views where no column is left out and the rows are together.

    Args:
        module: pair of the layer.
        path: of what the rows are.
        segments: first row and end of each piece, in the order in which `path` has them: two whose
            order is not that of the layer are swapped halves. `down` has nothing to swap.
    """
    up = rows_of(module.up, segments)
    used = up.any(axis=0)
    if used.all() or not used.any():
        return replace(module, path=path, up=up)
    alpha = None if module.alpha is None else module.scale * int(used.sum())
    return replace(module, path=path, down=module.down[used], up=up[:, used], alpha=alpha)


def rows_of(array: np.ndarray, segments: Segments) -> np.ndarray:
    """Pieces of an array's first axis, one after the other; a view where there is one piece."""
    if len(segments) == 1:
        ((first, end),) = segments
        return array[first:end]
    return np.concatenate([array[first:end] for first, end in segments])


def one_after_another(rows: Sequence[int]) -> list[Segments]:
    """Where the parts of a layer are that have so many rows each, in this order."""
    ends = [*accumulate(rows)]
    return [((first, end),) for first, end in zip([0, *ends], ends, strict=False)]


def joined(
    path: str, parts: Sequence[LoraModule | None], places: Sequence[Segments], origin: str
) -> LoraModule:
    """One pair for a layer that is made of others.

    Args:
        path: of the layer.
        parts: pairs of its parts, at least one; None for no update.
        places: where each part has its rows in the layer, as `cut` takes them.
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
    shared = all(np.array_equal(first.down, other.down) for other in alike[1:])
    rank = first.rank if shared else sum(part.rank for part in alike)
    up = np.zeros((max(end for place in places for _, end in place), rank), dtypes[1])
    column = 0
    for part, segments in zip(placed, places, strict=True):
        if part is None:
            continue
        columns = slice(0, rank) if shared else slice(column, column + part.rank)
        column += part.rank
        row = 0
        for begin, end in segments:
            up[begin:end, columns] = part.up[row : row + end - begin]
            row += end - begin
    if shared:
        return replace(first, path=path, up=up)
    alpha = None if first.alpha is None else first.scale * rank
    return LoraModule(path, np.concatenate([part.down for part in alike]), up, alpha)


def gathered_rows(module: LoraModule, orders: Sequence[range]) -> LoraModule:
    """A pair of a layer with the rows of its parts one part after another; see `placed_rows`."""
    if all(rows.step == 1 for rows in orders):
        return module
    parts = [module.up[rows.start : rows.stop : rows.step] for rows in orders]
    return replace(module, up=np.concatenate(parts))


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
