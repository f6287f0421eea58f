"""Layers that are rows and columns of the source's own: found in the weights, checked in whole."""

from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from prolora_jax.architectures.llm.layouts import has_rows_of_tokens
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.slices import (
    SLICE_MARGIN,
    SLICE_TOLERANCE,
    Slice,
    may_be_sliced,
    stream_of,
    with_slices,
)

_SAMPLED = 64
"""Numbers of each row by which it is found; what was found is checked in all numbers."""

_BLOCK = 1024
"""Rows that are looked for at a time."""

Rows = Float[np.ndarray, "_ _"]


class PairSlices:
    """What of a target pruned in width is the source's own.

    Args:
        source: base model that adapters were trained on.
        target: base model that they move to.
    """

    def __init__(self, source: BaseModel, target: BaseModel):
        self._source, self._target = source, target
        self._known: dict[str, Slice | None] = {}

    def matched(self, matching: Matching) -> Matching:
        """A matching with the layers that are slices of the source's.

        Every layer that could be one is read, once: only of language models of unlike widths.
        """
        specs = self._source.spec, self._target.spec
        paths = {path for path in may_be_sliced(*specs, matching) if self.of(path) is not None}
        return with_slices(matching, paths, self._target.spec) if paths else matching

    def of(self, path: str) -> Slice | None:
        """The rows and columns of one layer; None where it is none of the source's."""
        if path not in self._known:
            self._known[path] = self._found(path)
        return self._known[path]

    @property
    def paths(self) -> set[str]:
        """Layers that were found to be slices."""
        return {path for path, found in self._known.items() if found is not None}

    @cached_property
    def _stream(self) -> Int[np.ndarray, " width"] | None:
        """The source's channel for each of the target's, as columns of the embedding."""
        path = stream_of(self._source.spec, self._target.spec)
        if path is None:
            return None
        rows = _spread(self._target.spec.modules[path].shape[0])
        theirs, ours = (m.weight(path)[rows] for m in (self._source, self._target))
        return nearest_rows(ours.T, theirs.T)

    def _found(self, path: str) -> Slice | None:
        stream = self._stream
        if stream is None:
            return None
        theirs, ours = self._source.matrix(path), self._target.matrix(path)
        if has_rows_of_tokens(path):
            found = Slice(np.arange(len(ours)), stream)
            fits = len(ours) == len(theirs) and ours.shape[1] == len(stream)
            return found if fits and _holds(theirs, ours, found) else None
        return _slice(theirs, ours, stream)


def _slice(theirs: Rows, ours: Rows, stream: Int[np.ndarray, " width"]) -> Slice | None:
    """The stream's channels are a layer's columns, or else its rows."""
    for turned in (False, True):
        source, target = (theirs.T, ours.T) if turned else (theirs, ours)
        if target.shape[1] != len(stream) or source.shape[1] <= stream.max():
            continue
        places = _spread(len(stream))
        rows = nearest_rows(target[:, places], source[:, stream[places]])
        if rows is None:
            continue
        found = Slice(stream, rows) if turned else Slice(rows, stream)
        if _holds(theirs, ours, found):
            return found
    return None


def _holds(theirs: Rows, ours: Rows, found: Slice) -> bool:
    """Whether all numbers are the source's."""
    there = theirs[found.rows]
    there = there if found.columns is None else there[:, found.columns]
    apart = np.linalg.norm(ours - there)
    return bool(apart <= SLICE_TOLERANCE * np.linalg.norm(ours))


def nearest_rows(target: Rows, source: Rows) -> Int[np.ndarray, " count"] | None:
    """The source's row for each of the target's.

    Args:
        target: rows that are looked for.
        source: rows of the same width.

    Returns:
        None where a row is none of the source's, is like two of them, or two rows are one.
    """
    target, source = target.astype(np.float64), source.astype(np.float64)
    sizes, found = np.sum(source**2, axis=1), []
    if len(source) < 2:
        return None
    for first in range(0, len(target), _BLOCK):
        rows = target[first : first + _BLOCK]
        own = np.sum(rows**2, axis=1)
        apart = np.maximum(own[:, None] + sizes - 2.0 * rows @ source.T, 0.0)
        best, second = np.argpartition(apart, 1, axis=1)[:, :2].T
        places = np.arange(len(rows))
        near = apart[places, best] <= SLICE_TOLERANCE**2 * own
        if not (near & (apart[places, second] > SLICE_MARGIN**2 * own)).all():
            return None
        found.append(best)
    every = np.concatenate(found)
    return every if len({*every.tolist()}) == len(every) else None


def _spread(count: int) -> Int[np.ndarray, " chosen"]:
    return np.unique(np.linspace(0, count - 1, _SAMPLED).round().astype(int))
