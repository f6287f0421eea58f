"""A target whose weights are some of the source's rows and columns: pruned in width, not trained.

Where that is so, the update of a layer is the same rows and columns of the source's, exactly. Which
they are nobody publishes; embeddings tell those of the stream that runs through all layers, and
with these on one side of a layer its own rows or columns tell the other side.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.matching.matching import Matching

SLICE_TOLERANCE = 1e-3
"""Relative difference up to which a row, a column or a whole weight is the source's own."""

SLICE_MARGIN = 1e-2
"""Relative difference that any other row or column must have: of two alike nothing tells which."""


class Slice(NamedTuple):
    """Which of the source's rows and columns a target's layer has.

    Attributes:
        rows: the source's row for each of the target's; -1 of one that has none.
        columns: the same for columns; None where all are the source's in their places.
    """

    rows: Int[np.ndarray, " out"]
    columns: Int[np.ndarray, " in"] | None = None


def may_be_sliced(source: BaseModelSpec, target: BaseModelSpec, matching: Matching) -> list[str]:
    """Layers that could have some of the source's rows and columns, by names and shapes alone.

    Args:
        source: the source base model.
        target: the target base model.
        matching: of modules of equal shape.

    Returns:
        Paths in the target's order; none where the language models have other layers, or where
        those of equal shape were not paired by their names.
    """
    names = [[p for p in spec.modules if p.startswith(LM)] for spec in (source, target)]
    inside = {p: own for p, own in matching.pairs.items() if place_of(p) is not None}
    if {*names[0]} != {*names[1]} or any(path != own for path, own in inside.items()):
        return []
    found = []
    for path in names[1]:
        given, wanted = source.modules[path].shape, target.modules[path].shape
        smaller = all(b <= a for a, b in zip(given, wanted, strict=True))
        if given != wanted and smaller and path not in matching.pairs:
            found.append(path)
    return found


def stream_of(source: BaseModelSpec, target: BaseModelSpec) -> str | None:
    """The embedding whose columns are the stream's; None where vocabularies have other sizes."""
    for path, module in target.modules.items():
        known = source.modules.get(path)
        if is_embedding(path) and known is not None and known.shape[0] == module.shape[0]:
            return path
    return None


def with_slices(matching: Matching, paths: set[str], target: BaseModelSpec) -> Matching:
    """A matching with layers that are slices of the source's of the same name."""
    pairs = {path: path for path in paths} | dict(matching.pairs)
    return replace(matching, pairs={path: pairs[path] for path in target.modules if path in pairs})
