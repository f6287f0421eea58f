"""Rows of a matrix that are rows of another, found by some of their numbers, checked in all."""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from prolora_jax.matching.slices import SLICE_MARGIN, SLICE_TOLERANCE, STREAM_SHARE, Slice

SAMPLED = 64
"""Numbers of each row by which it is found; what was found is checked in all numbers."""

_PROBED = 8
"""Rows by which a layer is taken for a slice, before it is checked whose."""

_PARTS = 8
"""Into how many parts the tokens are cut, at most, by which the stream is looked for."""

_BLOCK = 1024
"""Rows that are checked at a time."""

Rows = Float[np.ndarray, "_ _"]


def spread(count: int, most: int = SAMPLED) -> Int[np.ndarray, " chosen"]:
    """Some of so many places, from the first to the last.

    Args:
        count: of places.
        most: how many are chosen.
    """
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def located_rows(target: Rows, source: Rows) -> Int[np.ndarray, " count"]:
    """The source's row for each of the target's.

    A tree of the source's rows is asked for what lies near: of rows that have nothing in common it
    looks at a handful, where a table of all distances would have a hundred million numbers.

    Args:
        target: rows that are looked for.
        source: rows of the same width.

    Returns:
        -1 for a row that is none of the source's, or is like two of them.
    """
    target, source = target.astype(np.float64), source.astype(np.float64)
    found = np.full(len(target), -1)
    if len(source) < 2 or not (np.isfinite(source).all() and np.isfinite(target).all()):
        return found
    sizes, tree = np.linalg.norm(target, axis=1), KDTree(source)
    # How many first: of rows that are all alike, each would bring a list of all.
    near = tree.query_ball_point(target, SLICE_MARGIN * sizes, return_length=True)
    alone = np.flatnonzero(near == 1)
    if len(alone):
        apart, places = map(np.atleast_1d, tree.query(target[alone]))
        own = apart <= SLICE_TOLERANCE * sizes[alone]
        found[alone[own]] = places[own]
    return found


def nearest_rows(target: Rows, source: Rows) -> Int[np.ndarray, " count"] | None:
    """The source's row for each of the target's.

    Args:
        target: rows that are looked for.
        source: rows of the same width.

    Returns:
        None where a row is none of the source's, is like two of them, or two rows are one.
    """
    found = located_rows(target, source)
    return found if (found >= 0).all() and len(np.unique(found)) == len(found) else None


def stream_in(target: Rows, source: Rows) -> Int[np.ndarray, " width"] | None:
    """The source's channel for each of the target's, as columns of two embeddings.

    The row of a token that was trained or renamed since makes every column another. So columns are
    looked for by all tokens, then by halves, quarters and eighths of them; what is found has to
    have the source's own rows of more than `STREAM_SHARE` of all.

    Args:
        target: rows of some tokens.
        source: rows of the same tokens.

    Returns:
        None where no columns are the source's.
    """
    parts = 1
    while parts <= _PARTS:
        for first in range(parts):
            ours, theirs = (rows[first::parts] for rows in (target, source))
            found = nearest_rows(ours.T, theirs.T)
            if found is not None and _share_of_own(target, source[:, found]) > STREAM_SHARE:
                return found
        parts *= 2
    return None


def _share_of_own(target: Rows, source: Rows) -> float:
    """Share of rows that are the source's at the same places."""
    apart = np.linalg.norm(target - source, axis=1)
    return float(np.mean(apart <= SLICE_TOLERANCE * np.linalg.norm(target, axis=1)))


def slice_of(theirs: Rows, ours: Rows, stream: Int[np.ndarray, " width"]) -> Slice | None:
    """Rows and columns of a layer, of which one side has the channels of the stream.

    Args:
        theirs: the source's weight.
        ours: the target's.
        stream: the source's channel for each of the target's.

    Returns:
        None where the layer is none of the source's.
    """
    for turned in (False, True):
        source, target = (theirs.T, ours.T) if turned else (theirs, ours)
        if target.shape[1] != len(stream) or source.shape[1] <= stream.max():
            continue
        places = spread(len(stream))
        rows = nearest_rows(target[:, places], source[:, stream[places]])
        if rows is None:
            continue
        found = Slice(stream, rows) if turned else Slice(rows, stream)
        if holds(theirs, ours, found):
            return found
    return None


def looks_like_a_slice(theirs: Rows, ours: Rows, stream: Int[np.ndarray, " width"]) -> bool:
    """Whether some rows, or columns, of a layer are the source's.

    Args:
        theirs: the source's weight.
        ours: the target's.
        stream: the source's channel for each of the target's.
    """
    for source, target in ((theirs, ours), (theirs.T, ours.T)):
        if target.shape[1] == len(stream) and source.shape[1] > stream.max():
            asked, places = target[spread(len(target), _PROBED)], spread(len(stream))
            if (located_rows(asked[:, places], source[:, stream[places]]) >= 0).all():
                return True
    return False


def holds(theirs: Rows, ours: Rows, found: Slice) -> bool:
    """Whether all numbers of a layer are the source's.

    Args:
        theirs: the source's weight.
        ours: the target's.
        found: the source's rows and columns.
    """
    apart, size = 0.0, 0.0
    for first in range(0, len(ours), _BLOCK):
        own, rows = ours[first : first + _BLOCK], found.rows[first : first + _BLOCK]
        there = theirs[rows] if found.columns is None else theirs[rows][:, found.columns]
        apart += float(np.linalg.norm(own - there)) ** 2
        size += float(np.linalg.norm(own)) ** 2
    return apart <= SLICE_TOLERANCE**2 * size
