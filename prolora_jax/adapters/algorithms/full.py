"""A full difference: the update itself, as extractors and LyCORIS's `full` write it.

`update = diff`; nothing scales it. It has full rank, so that its factors are an approximation.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Parts,
    Shape,
    double,
    flat_in,
    shapes_of,
)


def _matrix_shape(parts: Parts) -> tuple[int, int]:
    return flat_in(parts["diff"].shape)


def _rank(parts: Parts) -> int:
    return min(_matrix_shape(parts))


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    found = module.parts["diff"].shape
    if found == shape or found == (*shape, 1, 1) or (*found, 1, 1) == shape:
        return None
    return Misfit(shapes_of(module.parts), f"diff {shape}")


def _update(
    module: StructuredModule, shape: Shape, _: np.ndarray | None, __: int | None
) -> np.ndarray:
    return double(module.parts["diff"]).reshape(flat_in(shape))


FULL = Algorithm(
    "full",
    "full-diff",
    {".diff": "diff"},
    (frozenset({"diff"}),),
    _misfit,
    _update,
    rank=_rank,
    matrix_shape=_matrix_shape,
    zero_alpha_is_disputed=False,
)
