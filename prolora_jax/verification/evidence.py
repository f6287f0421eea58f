"""How alike weights are, densely in float64: what a matching is decided on, computed anew."""

from collections.abc import Sequence

import numpy as np

from prolora_jax.plans.nearness import CLOSE_WEIGHTS, PACKED_TWIN, is_close, is_twin
from prolora_jax.plans.options import MigrationOptions, basis_rule
from prolora_jax.plans.report import ModuleReport
from prolora_jax.verification.claim import Record
from prolora_jax.verification.dense import decompose, retained, similarity
from prolora_jax.verification.weights import Weights, finite_matrix, is_packed, numbers_of

AT_LIMIT = 1e-5
"""The package's squared norms are sums of float32 products: they may be off by so much of them."""
_PIECE = 2**16
"""Numbers of each weight that are compared at a time: rows of them stay in a core's cache."""


def cosine_evidence(
    source: Weights, target: Weights, sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """Dot products and squared norms of weights (docs/method.md 8): see `levels.Evidence`.

    Args:
        source: source base model.
        target: target base model.
        sources: module paths of one role and shape.
        targets: the same in the target.
    """
    found = np.zeros((len(sources), len(targets), 3))
    read = [numbers_of(source, path, _PIECE) for path in sources]
    read += [numbers_of(target, path, _PIECE) for path in targets]
    for pieces in zip(*read, strict=True):
        rows = np.empty((len(pieces), len(pieces[0])))
        for row, piece in zip(rows, pieces, strict=True):
            row[:] = piece
        x, y = rows[: len(sources)], rows[len(sources) :]
        found[:, :, 0] += x @ y.T
        squares = np.einsum("ij,ij->i", rows, rows)
        found[:, :, 1] += squares[: len(sources), None]
        found[:, :, 2] += squares[len(sources) :]
    if not np.isfinite(found).all():
        for model, paths in ((source, sources), (target, targets)):
            for path in paths:
                finite_matrix(model, path)
    return found


def close_weights(
    source: Weights, target: Weights, source_path: str, path: str, *, told: Record | None
) -> bool:
    """Whether two weights are close; at the limit, to float32's last digits, as was told.

    Args:
        source: source base model.
        target: target base model.
        source_path: module of the source.
        path: module of the target.
        told: what the report says became of them.
    """
    difference, size, _ = _apart(source, target, source_path, path)
    sure, possible = (is_close(difference * (1.0 + e), size) for e in (AT_LIMIT, -AT_LIMIT))
    said = isinstance(told, ModuleReport) and CLOSE_WEIGHTS in told.flags
    return sure or (possible and said)


def packed_twins(
    source: Weights, target: Weights, source_path: str, path: str, *, told: Record | None
) -> bool:
    """Whether two weights are one but for how they are packed; at the limit, as was told.

    Args:
        source: source base model.
        target: target base model.
        source_path: module of the source.
        path: module of the target.
        told: what the report says became of them.
    """
    if not (is_packed(source, source_path) or is_packed(target, path)):
        return False
    difference, *sizes = _apart(source, target, source_path, path)
    sure, possible = (is_twin(difference * (1.0 + e), *sizes) for e in (AT_LIMIT, -AT_LIMIT))
    said = isinstance(told, ModuleReport) and PACKED_TWIN in told.flags
    return sure or (possible and said)


def _apart(
    source: Weights, target: Weights, source_path: str, path: str
) -> tuple[float, float, float]:
    """Squared norms of the difference of two weights, of the source's and of the target's."""
    pieces = (numbers_of(source, source_path, _PIECE), numbers_of(target, path, _PIECE))
    found = np.zeros(3)
    for pair in zip(*pieces, strict=True):
        a, b = (piece.astype(np.float64) for piece in pair)
        found += np.sum((b - a) ** 2), np.sum(a * a), np.sum(b * b)
    if not np.isfinite(found).all():
        for model, of in ((source, source_path), (target, path)):
            finite_matrix(model, of)
    apart, size_a, size_b = found.tolist()
    return apart, size_a, size_b


def similarity_evidence(
    source: Weights,
    target: Weights,
    sources: Sequence[str],
    targets: Sequence[str],
    options: MigrationOptions,
) -> np.ndarray:
    """Mean of both sides' similarity, corrected for chance where that says something.

    Args:
        source: source base model.
        target: target base model.
        sources: module paths of one role and shape.
        targets: the same in the target.
        options: rank rule and pairing of ranks.
    """
    rules = [basis_rule(options.options_for(path).basis_rank) for path in targets]
    theirs = [decompose(finite_matrix(target, path)) for path in targets]
    found = np.ones((len(sources), len(targets), 3))
    for i, source_path in enumerate(sources):
        u, s, v = decompose(finite_matrix(source, source_path))
        for j, (u_t, s_t, v_t) in enumerate(theirs):
            shape = len(u), len(v)
            k, k_t = retained(s, rules[j], shape), retained(s_t, rules[j], shape)
            if options.pair_rank == "max":
                k = k_t = max(k, k_t)
            sides = []
            for a, b in ((u, u_t), (v, v_t)):
                phi, chance = similarity(a[:, :k], b[:, :k_t]), max(k, k_t) / len(a)
                sides.append(phi if chance >= 1.0 else (phi - chance) / (1.0 - chance))
            found[i, j, 0] = sum(sides) / 2
    return found
