"""How alike weights of two base models are: what `matching` decides on.

Both kinds have the form that `levels.Evidence` asks for. Cosines need the weights alone;
similarities need subspaces, and those of every pair that could be matched.
"""

from collections.abc import Callable, Sequence

import numpy as np

from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.matching.pairs import ModulePair

ROW_BYTES = 512 * 2**20
"""Weights of the target held at a time; a role that has more is compared in several passes."""


def cosines(
    source: BaseModel, target: BaseModel, sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """Dot products and squared norms of weights, each weight as one long vector.

    Args:
        source: the source base model.
        target: the target base model.
        sources: module paths of one shape.
        targets: module paths of the same shape.

    Returns:
        `(sources, targets, 3)`: dot, squared norm of the source's and of the target's weight.
    """
    found = np.zeros((len(sources), len(targets), 3))
    size = 4 * int(np.prod(target.spec.modules[targets[0]].matrix_shape))
    step = max(1, ROW_BYTES // size)
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        rows = np.stack([target.matrix(path).ravel() for path in targets[part]])
        found[:, part, 2] = np.einsum("ij,ij->i", rows, rows)
        for i, path in enumerate(sources):
            row = source.matrix(path).ravel()
            found[i, part, 0] = rows @ row
            found[i, part, 1] = row @ row
    return found


def similarities(
    value: Callable[[ModulePair], float], sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """Evidence whose score is the mean of a value of single pairs.

    Args:
        value: of one pair.
        sources: module paths.
        targets: module paths.

    Returns:
        `(sources, targets, 3)`: the value, 1, 1.
    """
    found = np.ones((len(sources), len(targets), 3))
    for i, source_path in enumerate(sources):
        for j, path in enumerate(targets):
            found[i, j, 0] = value(ModulePair(source_path, path))
    return found
