"""Layers that are rows and columns of the source's own: found in the weights, checked in whole."""

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from prolora_jax.architectures.llm.layouts import has_rows_of_tokens
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.stores.weight_tables import TableKey, WeightTables
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.slices import (
    LayerStack,
    Slice,
    asked_of,
    may_be_sliced,
    stacks_to_align,
    stream_of,
    with_layers,
    with_slices,
)
from prolora_jax.migration.row_search import (
    holds,
    looks_like_a_slice,
    slice_of,
    spread,
    stream_in,
)


class PairSlices:
    """What of a target pruned in width is the source's own.

    Args:
        source: base model that adapters were trained on.
        target: base model that they move to.
        tables: where what was found is looked up and kept, by the fingerprints of the weights.
    """

    def __init__(self, source: BaseModel, target: BaseModel, tables: WeightTables | None = None):
        self._source, self._target, self._tables = source, target, tables
        self._known: dict[tuple[str, str], Slice | None] = {}

    def matched(self, matching: Matching) -> Matching:
        """A matching with the layers that are slices of the source's.

        Every layer that could be one is read, once: only of language models of unlike widths. Of
        models that differ in depth, too, layers are aligned first.
        """
        specs = self._source.spec, self._target.spec
        found = matching
        for stack in stacks_to_align(*specs, matching):
            if self._stream is not None:
                found = with_layers(found, stack, self._alike(stack, self._stream))
        own = may_be_sliced(*specs, found)
        slices = {path: own[path] for path in own if self.of(own[path], path) is not None}
        return with_slices(found, slices, self._target.spec) if slices else matching

    def of(self, source_path: str, path: str) -> Slice | None:
        """The rows and columns of one layer; None where it is none of the source's.

        Args:
            source_path: layer of the source.
            path: layer of the target.
        """
        pair = source_path, path
        if pair not in self._known:
            self._known[pair] = self._found(source_path, path)
        return self._known[pair]

    def among(self, pairs: Mapping[str, str]) -> set[str]:
        """Layers of the target that were found to be slices.

        Args:
            pairs: source path by target path.
        """
        return {path for path, own in pairs.items() if self._known.get((own, path)) is not None}

    @cached_property
    def _embedding(self) -> str | None:
        return stream_of(self._source.spec, self._target.spec)

    @cached_property
    def _stream(self) -> Int[np.ndarray, " width"] | None:
        """The source's channel for each of the target's, as columns of the embedding."""
        path = self._embedding
        if path is None:
            return None

        def search() -> np.ndarray:
            rows = spread(self._target.spec.modules[path].shape[0])
            theirs, ours = (m.weight(path)[rows] for m in (self._source, self._target))
            found = stream_in(ours, theirs)
            return np.zeros(0) if found is None else found

        kept = self._looked_up("slice stream by share", [], [], search).astype(np.int64)
        return kept if len(kept) else None

    def _alike(
        self, stack: LayerStack, stream: Int[np.ndarray, " width"]
    ) -> Bool[np.ndarray, "sources targets"]:
        """Whether layers look like slices, by their smallest modules.

        Others are asked for of layers of the target alone that are like none yet: a module may have
        been trained since.
        """
        asked = asked_of(stack, self._source.spec, self._target.spec)
        alike = np.zeros((len(stack.sources), len(stack.targets)), bool)
        for turn in range(max((len(pairs) for row in asked for pairs in row), default=0)):
            places = [
                (i, j)
                for i, row in enumerate(asked)
                for j in np.flatnonzero(~alike.any(axis=0)).tolist()
                if turn < len(row[j])
            ]
            if places:
                found = self._look_like_slices([asked[i][j][turn] for i, j in places], stream)
                alike[tuple(zip(*places, strict=True))] = found
        return alike

    def _look_like_slices(
        self, pairs: list[tuple[str, str]], stream: Int[np.ndarray, " width"]
    ) -> Bool[np.ndarray, " pairs"]:
        """Whether each target's module looks like a slice of a source's.

        Args:
            pairs: paths of both, those with one source's module one after another.
            stream: the source's channel for each of the target's.
        """

        def search() -> np.ndarray:
            ours = {path: self._target.matrix(path) for _, path in pairs}
            found, held = [], ("", np.zeros((0, 0), np.float32))
            for source_path, path in pairs:
                if held[0] != source_path:  # one at a time: all of them are the model
                    held = source_path, self._source.matrix(source_path)
                found.append(looks_like_a_slice(held[1], ours[path], stream))
            return np.array(found, float)

        theirs, own = (list(paths) for paths in zip(*pairs, strict=True))
        return self._looked_up("slice layers", theirs, own, search) > 0.0

    def _found(self, source_path: str, path: str) -> Slice | None:
        stream = self._stream
        if stream is None:
            return None

        def search() -> np.ndarray:
            theirs, ours = self._source.matrix(source_path), self._target.matrix(path)
            if has_rows_of_tokens(path):
                found = Slice(np.arange(len(ours)), stream)
                fits = len(ours) == len(theirs) and ours.shape[1] == len(stream)
                found = found if fits and holds(theirs, ours, found) else None
            else:
                found = slice_of(theirs, ours, stream)
            return _flat(found)

        kept = self._looked_up("slice", [source_path], [path], search).astype(np.int64)
        rows = self._target.spec.modules[path].matrix_shape[0]
        return Slice(kept[:rows], kept[rows:]) if len(kept) else None

    def _looked_up(
        self, kind: str, sources: list[str], targets: list[str], search: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """What a search finds in some weights and both embeddings, kept from run to run."""
        embedding = self._embedding
        if self._tables is None or embedding is None:
            return search()
        theirs = self._source.fingerprints([embedding, *sources])
        ours = self._target.fingerprints([embedding, *targets])
        key = TableKey(
            kind,
            tuple(theirs[path] for path in (embedding, *sources)),
            tuple(ours[path] for path in (embedding, *targets)),
        )
        found = self._tables.get(key)
        if found is None:
            found = search()
            self._tables.put(key, found)
        return found


def _flat(found: Slice | None) -> np.ndarray:
    """Rows, then columns; nothing of no slice."""
    if found is None or found.columns is None:
        return np.zeros(0)
    return np.concatenate([found.rows, found.columns])
