"""How alike weights of two base models are: what `matching` decides on.

Both kinds have the form that `levels.Evidence` asks for. Cosines need the weights alone;
similarities need subspaces, and those of every pair that could be matched.
"""

from collections.abc import Callable, Sequence

import numpy as np

from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.stores.weight_tables import TableKey, WeightTables
from prolora_jax.matching.pairs import ModulePair

STEP = 2**17
"""Numbers of each weight that are compared at a time: those of twenty weights fit a cache."""

HELD_BYTES = 512 * 2**20
"""Weights held at a time where their files cannot be read in parts."""


def cosines(
    source: BaseModel,
    target: BaseModel,
    sources: Sequence[str],
    targets: Sequence[str],
    tables: WeightTables | None = None,
) -> np.ndarray:
    """Dot products and squared norms of weights, each weight as one long vector.

    Args:
        source: the source base model.
        target: the target base model.
        sources: module paths of one shape.
        targets: module paths of the same shape.
        tables: where they are looked up and kept, by the fingerprints of the weights.

    Returns:
        `(sources, targets, 3)`: dot, squared norm of the source's and of the target's weight.
    """
    if tables is None:
        return _cosines(source, target, sources, targets)
    prints = source.fingerprints(sources), target.fingerprints(targets)
    key = TableKey(
        "cosines", tuple(prints[0][p] for p in sources), tuple(prints[1][p] for p in targets)
    )
    found = tables.get(key)
    if found is None or found.shape != (len(sources), len(targets), 3):
        found = _cosines(source, target, sources, targets)
        tables.put(key, found)
    return found


def _cosines(
    source: BaseModel, target: BaseModel, sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    found = np.zeros((len(sources), len(targets), 3))
    for rows in _parts(source, sources):
        for columns in _parts(target, targets):
            found[rows, columns] = _dots(source, target, sources[rows], targets[columns])
    return found


def _parts(model: BaseModel, paths: Sequence[str]) -> list[slice]:
    """All at once where the files are read in parts, else as many as may be held."""
    size = 4 * int(np.prod(model.spec.modules[paths[0]].matrix_shape))
    streamed = all(map(model.is_streamed, paths))
    step = len(paths) if streamed else max(1, HELD_BYTES // (2 * size))
    return [slice(start, start + step) for start in range(0, len(paths), step)]


def _dots(
    source: BaseModel, target: BaseModel, sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """Each weight is read once, a part of all of them at a time; sums are in float64."""
    found = np.zeros((len(sources), len(targets), 3))
    readers = [source.numbers(path, STEP) for path in sources]
    readers += [target.numbers(path, STEP) for path in targets]
    rows = np.empty((len(readers), STEP), np.float32)
    for parts in zip(*readers, strict=True):
        whole = rows[:, : len(parts[0])]
        for row, part in zip(whole, parts, strict=True):
            row[:] = part
        a, b = whole[: len(sources)], whole[len(sources) :]
        found[..., 0] += a @ b.T
        found[..., 1] += np.einsum("ij,ij->i", a, a)[:, None]
        found[..., 2] += np.einsum("ij,ij->i", b, b)
    return found


def distances(
    source: BaseModel,
    target: BaseModel,
    pairs: Sequence[ModulePair],
    tables: WeightTables | None = None,
) -> np.ndarray:
    """How far the weights of pairs are apart.

    Args:
        source: the source base model.
        target: the target base model.
        pairs: of modules.
        tables: where they are looked up and kept, by the fingerprints of the weights.

    Returns:
        `(pairs, 3)`: squared norm of the target's weight less the source's, of the source's, and
        of the target's.
    """
    if tables is None:
        return _distances(source, target, pairs)
    a = source.fingerprints(pair.source for pair in pairs)
    b = target.fingerprints(pair.target for pair in pairs)
    prints = [(a[pair.source], b[pair.target]) for pair in pairs]
    key = TableKey("distances", tuple(s for s, _ in prints), tuple(t for _, t in prints))
    found = tables.get(key)
    if found is None or found.shape != (len(pairs), 3):
        found = _distances(source, target, pairs)
        tables.put(key, found)
    return found


def _distances(source: BaseModel, target: BaseModel, pairs: Sequence[ModulePair]) -> np.ndarray:
    found = np.zeros((len(pairs), 3))
    for row, pair in zip(found, pairs, strict=True):
        parts = source.numbers(pair.source, STEP), target.numbers(pair.target, STEP)
        for a, b in zip(*parts, strict=True):
            a, b = a.astype(np.float32), b.astype(np.float32)
            difference = b - a
            row += float(difference @ difference), float(a @ a), float(b @ b)
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
