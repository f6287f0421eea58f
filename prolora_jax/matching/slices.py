"""A target whose weights are some of the source's rows and columns: pruned in width, not trained.

It may have fewer layers as well: where no shape tells which ones they are, rows do.

Where that is so, the update of a layer is the same rows and columns of the source's, exactly. Which
they are nobody publishes; embeddings tell those of the stream that runs through all layers, and
with these on one side of a layer its own rows or columns tell the other side.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import Part, place_of, tree
from prolora_jax.matching.alignment import Alignment, align
from prolora_jax.matching.matching import Matching

SLICE_TOLERANCE = 1e-3
"""Relative difference up to which a row, a column or a whole weight is the source's own."""

SLICE_MARGIN = 1e-2
"""Relative difference that any other row or column must have: of two alike nothing tells which."""

STREAM_SHARE = 0.5
"""Of the tokens looked at more than this share must have the source's own rows."""


class Slice(NamedTuple):
    """Which of the source's rows and columns a target's layer has.

    Attributes:
        rows: the source's row for each of the target's; -1 of one that has none.
        columns: the same for columns; None where all are the source's in their places.
    """

    rows: Int[np.ndarray, " out"]
    columns: Int[np.ndarray, " in"] | None = None


class LayerStack(NamedTuple):
    """Layers of two language models of which some are to be found.

    Attributes:
        slot: path of the stack.
        sources: the source's layers: for each the module's path by its role.
        targets: the target's.
    """

    slot: str
    sources: tuple[Mapping[str, str], ...]
    targets: tuple[Mapping[str, str], ...]


def stacks_to_align(
    source: BaseModelSpec, target: BaseModelSpec, matching: Matching
) -> list[LayerStack]:
    """Stacks with other numbers of layers, of which no two have a module of one shape.

    Args:
        source: the source base model.
        target: the target base model.
        matching: of modules of equal shape.
    """
    if matching.matched_by != "block":
        return []
    shorter = [s for s in _stacks(source, target) if len(s.sources) != len(s.targets)]
    paired = {alignment.slot for alignment in matching.alignments if alignment.pairs}
    return [stack for stack in shorter if stack.slot not in paired]


def asked_of(
    stack: LayerStack, source: BaseModelSpec, target: BaseModelSpec
) -> list[list[list[tuple[str, str]]]]:
    """The modules of each two layers by which it may be seen whether one is a slice.

    Args:
        stack: of both.
        source: the source base model.
        target: the target base model.

    Returns:
        By layer of the source and layer of the target the paths of both, the smallest first.
    """

    def fitting(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[tuple[str, str]]:
        both = [(theirs[role], path) for role, path in ours.items() if role in theirs]
        fit = [pair for pair in both if _is_smaller(source, target, *pair)]
        return sorted(fit, key=lambda pair: math.prod(source.modules[pair[0]].shape))

    return [[fitting(theirs, ours) for ours in stack.targets] for theirs in stack.sources]


def with_layers(
    matching: Matching, stack: LayerStack, alike: Bool[np.ndarray, "sources targets"]
) -> Matching:
    """A matching that has an alignment of a stack by slices.

    Args:
        matching: of modules of equal shape.
        stack: that is aligned.
        alike: whether a layer of the target looks like a slice of a layer of the source.

    Returns:
        The same with such layers paired in their order. The margin is 1, or 0 where nothing tells
        which one is meant: a layer of the target is like two of the source's, or is like one and
        not paired, since layers come in another order or one of them twice.
    """
    pairs, _ = align(alike.astype(float), alike.astype(np.int64))
    wanted = np.zeros(len(stack.targets), np.int64)
    wanted[[j for _, j in pairs]] = 1
    certain = np.array_equal(np.count_nonzero(alike, axis=0), wanted)
    margin = float(certain) if pairs else None
    counts = len(stack.sources), len(stack.targets)
    found = Alignment(stack.slot, *counts, pairs, margin, "layers")
    rest = [a for a in matching.alignments if a.slot != stack.slot]
    return replace(matching, alignments=(*rest, found))


def may_be_sliced(
    source: BaseModelSpec, target: BaseModelSpec, matching: Matching
) -> dict[str, str]:
    """Layers that could have some of the source's rows and columns, by names and shapes alone.

    Args:
        source: the source base model.
        target: the target base model.
        matching: of modules of equal shape, with alignments of all stacks.

    Returns:
        Source path by target path, in the target's order. Of layers that are not paired by an
        alignment only those of one name in models that have all the same names.
    """
    sources = _by_alignment(source, target, matching)
    names = [[p for p in spec.modules if p.startswith(LM)] for spec in (source, target)]
    inside = {p: own for p, own in matching.pairs.items() if place_of(p) is not None}
    if {*names[0]} == {*names[1]} and all(path == own for path, own in inside.items()):
        sources |= {path: path for path in names[1]}
    elif sources:
        sources |= {path: path for path in names[1] if place_of(path) is None}
    return {
        path: sources[path]
        for path in names[1]
        if path in sources
        and path not in matching.pairs
        and _is_smaller(source, target, sources[path], path)
    }


def _by_alignment(
    source: BaseModelSpec, target: BaseModelSpec, matching: Matching
) -> dict[str, str]:
    """Source path by target path of all modules that have one role in two aligned layers."""
    pairs = {alignment.slot: alignment.pairs for alignment in matching.alignments}
    return {
        path: stack.sources[i][role]
        for stack in _stacks(source, target)
        for i, j in pairs.get(stack.slot, ())
        for role, path in stack.targets[j].items()
        if role in stack.sources[i]
    }


def _stacks(source: BaseModelSpec, target: BaseModelSpec) -> list[LayerStack]:
    """The outermost stacks that both language models have."""
    name = LM.removesuffix(".")
    theirs, ours = (tree(spec.modules).get(name) for spec in (source, target))
    if theirs is None or ours is None:
        return []
    return [
        LayerStack(f"{LM}{stack.name}", _roles(theirs.stacks[stack]), _roles(ours.stacks[stack]))
        for stack in ours.stacks
        if stack in theirs.stacks
    ]


def _roles(parts: Mapping[int, Part]) -> tuple[Mapping[str, str], ...]:
    return tuple(
        {path.removeprefix(f"{part.path}."): path for path in part.paths()}
        for part in parts.values()
    )


def _is_smaller(source: BaseModelSpec, target: BaseModelSpec, own: str, path: str) -> bool:
    """Whether a layer of the target could be rows and columns of one of the source's."""
    if own not in source.modules:
        return False
    given, wanted = source.modules[own].shape, target.modules[path].shape
    return given != wanted and all(b <= a for a, b in zip(given, wanted, strict=True))


def stream_of(source: BaseModelSpec, target: BaseModelSpec) -> str | None:
    """The embedding whose columns are the stream's; None where vocabularies have other sizes."""
    for path, module in target.modules.items():
        known = source.modules.get(path)
        if is_embedding(path) and known is not None and known.shape[0] == module.shape[0]:
            return path
    return None


def with_slices(matching: Matching, slices: Mapping[str, str], target: BaseModelSpec) -> Matching:
    """A matching with layers that are slices of the source's.

    Args:
        matching: of modules of equal shape.
        slices: source path by target path.
        target: the target base model.
    """
    pairs = dict(slices) | dict(matching.pairs)
    return replace(matching, pairs={path: pairs[path] for path in target.modules if path in pairs})
