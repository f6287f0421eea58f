"""Which rows and columns of a source a target has, found anew: row by row, on other numbers."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.architectures.llm.layouts import has_rows_of_tokens
from prolora_jax.architectures.stacks import place_of
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.slices import (
    SLICE_MARGIN,
    SLICE_TOLERANCE,
    STREAM_SHARE,
    LayerStack,
    Slice,
    asked_of,
    may_be_sliced,
    stacks_to_align,
    stream_of,
    with_layers,
)
from prolora_jax.verification.weights import Weights

_LOOKED_AT = 96
"""Numbers of each row or column by which it is found."""

_FEW, _WINDOWS = 8, 64
"""Tokens of a window, and windows, by which the stream is found where tokens were trained since."""

_ASKED = 512
"""Tokens, about, that are asked whether they have the source's own rows."""


class FoundSlices(NamedTuple):
    """What of a target is rows and columns of its source.

    Attributes:
        matching: with the alignment of layers that was found.
        sources: source path by target path of layers that are slices, of those whose like are
            trained.
        slices: their rows and columns, by target path.
    """

    matching: Matching
    sources: Mapping[str, str]
    slices: Mapping[str, Slice]


def slices_of(
    source: Weights, target: Weights, matching: Matching, trained: Collection[str]
) -> FoundSlices | None:
    """Rows and columns by layer, of those that are the source's own; None where nothing could be.

    Args:
        source: base model of the input.
        target: base model of the file.
        matching: of modules of equal shape.
        trained: layers of the source that anybody asks for.
    """
    embedding = stream_of(source.spec, target.spec)
    stacks = stacks_to_align(source.spec, target.spec, matching)
    if embedding is None or not (stacks or may_be_sliced(source.spec, target.spec, matching)):
        return None
    stream = _stream(source, target, embedding)
    if stream is None:
        return None
    for stack in stacks:
        matching = with_layers(matching, stack, _alike(source, target, stack, stream))
    own = may_be_sliced(source.spec, target.spec, matching)
    roles = {_role(path) for path in trained}
    wanted = [path for path in own if _role(own[path]) in roles]
    found = {path: _of(source, target, own[path], path, stream) for path in wanted}
    slices = {path: one for path, one in found.items() if one is not None}
    # A stack is aligned by slices where there is one, whether anybody trained it or not.
    if not slices and not any(
        _of(source, target, own[path], path, stream) for path in own.keys() - found.keys()
    ):
        return None
    return FoundSlices(matching, {path: own[path] for path in slices}, slices)


def _stream(source: Weights, target: Weights, embedding: str) -> np.ndarray | None:
    """The source's channel for each of the target's.

    Rows of some tokens may be trained since, those of special ones before all, which come first:
    then the last ones are looked at, then a few here and there.
    """
    theirs, ours = (model.weight(embedding) for model in (source, target))
    begins = np.linspace(0, max(len(ours) - _FEW, 0), _WINDOWS).astype(int).tolist()
    windows = [slice(_LOOKED_AT), slice(-_LOOKED_AT, None)]
    for tokens in (*windows, *(slice(begin, begin + _FEW) for begin in begins)):
        found = _find(theirs[tokens].T, ours[tokens].T)
        if found is not None and _has_own_rows(theirs, ours, found):
            return found
    return None


def _has_own_rows(theirs: np.ndarray, ours: np.ndarray, stream: np.ndarray) -> bool:
    """Whether enough tokens have the source's numbers in these channels."""
    own = 0
    asked = range(0, len(ours), max(len(ours) // _ASKED, 1))
    for token in asked:
        row = ours[token].astype(np.float64)
        apart = np.linalg.norm(theirs[token, stream].astype(np.float64) - row)
        own += bool(apart <= SLICE_TOLERANCE * np.linalg.norm(row))
    return own > STREAM_SHARE * len(asked)


def _role(path: str) -> str:
    place = place_of(path)
    return path if place is None else place.role


def _alike(source: Weights, target: Weights, stack: LayerStack, stream: np.ndarray) -> np.ndarray:
    """Whether the first row or column of a module of two layers is of both."""
    asked = asked_of(stack, source.spec, target.spec)
    alike = np.zeros((len(stack.sources), len(stack.targets)), bool)
    for j in range(len(stack.targets)):
        column = [row[j] for row in asked]
        for turn in range(max(map(len, column), default=0)):
            for i, pairs in enumerate(column):
                if turn < len(pairs):
                    theirs, ours = source.matrix(pairs[turn][0]), target.matrix(pairs[turn][1])
                    turned = _has_first_row(theirs.T, ours.T, stream)
                    alike[i, j] = turned or _has_first_row(theirs, ours, stream)
            if alike[:, j].any():
                break
    return alike


def _has_first_row(theirs: np.ndarray, ours: np.ndarray, stream: np.ndarray) -> bool:
    if ours.shape[1] != len(stream) or theirs.shape[1] <= stream.max():
        return False
    return _find(theirs[:, stream][:, :_LOOKED_AT], ours[:1, :_LOOKED_AT]) is not None


def _of(
    source: Weights, target: Weights, source_path: str, path: str, stream: np.ndarray
) -> Slice | None:
    theirs, ours = source.matrix(source_path), target.matrix(path)
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
