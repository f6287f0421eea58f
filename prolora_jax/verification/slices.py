"""Which rows and columns of a source a target has, found anew: row by row, on other numbers."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.architectures.llm.layouts import has_rows_of_tokens
from prolora_jax.matching.slices import SLICE_MARGIN, SLICE_TOLERANCE, Slice, stream_of
from prolora_jax.verification.weights import Weights

_LOOKED_AT = 96
"""Numbers of each row or column by which it is found."""


def slices_of(
    source: Weights, target: Weights, paths: Sequence[str], trained: Collection[str]
) -> dict[str, Slice]:
    """Rows and columns by layer, of those that are the source's own.

    Args:
        source: base model of the input.
        target: base model of the file.
        paths: layers that could be, by their shapes.
        trained: layers that anybody asks for.
    """
    wanted = [path for path in paths if path in trained]
    embedding = stream_of(source.spec, target.spec)
    if not wanted or embedding is None:
        return {}
    tokens = np.arange(target.spec.modules[embedding].shape[0])[:_LOOKED_AT]
    theirs, ours = (model.weight(embedding)[tokens].T for model in (source, target))
    stream = _find(theirs, ours)
    found = {} if stream is None else {path: _of(source, target, path, stream) for path in wanted}
    return {path: one for path, one in found.items() if one is not None}


def _of(source: Weights, target: Weights, path: str, stream: np.ndarray) -> Slice | None:
    theirs, ours = source.matrix(path), target.matrix(path)
    candidates = []
    if has_rows_of_tokens(path):
        candidates = [Slice(np.arange(len(ours)), stream)]
    else:
        if ours.shape[1] == len(stream) and theirs.shape[1] > stream.max():
            rows = _find(theirs[:, stream][:, :_LOOKED_AT], ours[:, :_LOOKED_AT])
            candidates += [] if rows is None else [Slice(rows, stream)]
        if ours.shape[0] == len(stream) and theirs.shape[0] > stream.max():
            columns = _find(theirs[stream][:_LOOKED_AT].T, ours[:_LOOKED_AT].T)
            candidates += [] if columns is None else [Slice(stream, columns)]
    for one in candidates:
        if one.columns is None or one.rows.max() >= len(theirs):
            continue
        if len(one.rows) != len(ours) or len(one.columns) != ours.shape[1]:
            continue
        there = theirs[one.rows][:, one.columns].astype(np.float64)
        if np.linalg.norm(there - ours) <= SLICE_TOLERANCE * np.linalg.norm(ours):
            return one
    return None


def _find(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """Row of `theirs` for each row of `ours`, one at a time; None where that is not certain."""
    theirs, found = theirs.astype(np.float64), []
    for row in ours.astype(np.float64):
        size = float(np.linalg.norm(row))
        # What is near has a first number that is near.
        near = np.flatnonzero(np.abs(theirs[:, 0] - row[0]) <= SLICE_MARGIN * size)
        apart = np.linalg.norm(theirs[near] - row, axis=1)
        alike = near[apart <= SLICE_MARGIN * size]
        if len(alike) != 1 or float(apart.min()) > SLICE_TOLERANCE * size:
            return None
        found.append(int(alike[0]))
    return np.array(found) if len(set(found)) == len(found) else None


def sliced(before: LoraModule, places: Slice) -> LoraModule:
    """An update's own factors at these rows and columns.

    Args:
        before: the input's module.
        places: rows and columns of the target.
    """
    columns = range(before.down.shape[1]) if places.columns is None else places.columns
    up = np.stack([before.up[row] for row in places.rows])
    down = np.stack([before.down[:, column] for column in columns], axis=1)
    return replace(before, up=up, down=down)
