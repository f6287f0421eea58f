"""Where it is published which module of a target comes from which of its source.

A UNet's layout tells which one it is. Transformers with equal shapes are many, so that what is
published of one of them is believed only where the weights say the same.
"""

from collections.abc import Mapping

import numpy as np

from prolora_jax.architectures.dit.correspondence import dit_source_paths
from prolora_jax.architectures.llm.stacked import stacked_source_paths
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.architectures.unet.correspondence import CORRESPONDENCES, source_paths
from prolora_jax.matching.levels import Evidence, score

LEAST_AGREEING = 0.75
"""Share of the blocks whose published source has to be the most like them of all source blocks.

A block that was trained anew in the place of several, as in Flex, may be like none of them.
"""

# A correspondence that was only guessed from shapes says nothing about blocks of equal shape.
_PUBLISHED = {pair: known for pair, known in CORRESPONDENCES.items() if known.published}


def known_sources(
    source: BaseModelSpec, target: BaseModelSpec, evidence: Evidence
) -> dict[str, str] | None:
    """Source path by target path, as published; None where nothing is, or weights contradict it.

    Args:
        source: modules of the source base model.
        target: modules of the target base model.
        evidence: how alike modules are; asked of transformers and of language models that are put
            together of layers, for one module of each block.
    """
    found = stacked_source_paths(source, target)
    if found is not None and _agrees(source, target, evidence, found):
        return found
    found = source_paths(source, target, _PUBLISHED)
    if found is not None:
        return found
    found = dit_source_paths(source, target)
    if found is None or not _agrees(source, target, evidence, found):
        return None
    return found


def _agrees(
    source: BaseModelSpec, target: BaseModelSpec, evidence: Evidence, pairs: Mapping[str, str]
) -> bool:
    """Whether the weights of the blocks that have moved are most like those they come from."""
    moved = next((path for path in pairs if pairs[path] != path), None)
    place = None if moved is None else place_of(moved)
    if place is None:
        return True
    stack, blocks = place.steps[0].stack, {path: place_of(path) for path in pairs}
    counts: dict[str, list[str]] = {}
    for path, at in blocks.items():
        if at is not None and at.steps[0].stack == stack and target.modules[path].kind_is("attn"):
            counts.setdefault(at.role, []).append(path)
    if not counts:
        return False
    size = {role: np.prod(target.modules[paths[0]].shape) for role, paths in counts.items()}
    role = min(counts, key=lambda one: (-len(counts[one]), size[one], one))
    targets = counts[role]
    sources = [
        path
        for path in source.component(place.component)
        if (at := place_of(path)) is not None and (at.steps[0].stack, at.role) == (stack, role)
    ]
    table = np.asarray(evidence(sources, targets), dtype=np.float64)
    agreeing = 0
    for column, path in zip(table.swapaxes(0, 1), targets, strict=True):
        best = int(np.argmax([score(row) for row in column]))
        agreeing += pairs[path] == sources[best]
    return agreeing >= LEAST_AGREEING * len(targets)
