"""LoCon with a Tucker core: a convolution's factors are 1x1, and the core has the window.

`update[i, j] = scale * sum up[i, m] core[m, n] down[n, j]` for each place of the window (formats.md
2.1). The core goes into `down`: that is a plain LoCon of the same rank, exactly.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    LowRank,
    Misfit,
    Parts,
    Shape,
    double,
    scale_of,
    shapes_of,
)

_ENDS = {".lora_mid.weight": "mid", "down": "down", "up": "up"}
_NEEDS = frozenset({"down", "up", "mid"})


def _rank(parts: Parts) -> int:
    return parts["down"].shape[0]


def _matrix_shape(parts: Parts) -> tuple[int, int]:
    window = int(np.prod(parts["mid"].shape[2:]))
    return parts["up"].shape[0], int(np.prod(parts["down"].shape[1:])) * window


def _bound(parts: Parts, shape: tuple[int, int]) -> int:
    return min(*shape, parts["up"].shape[1])


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    down, up, mid = (module.parts[name].shape for name in ("down", "up", "mid"))
    pointwise = set(down[2:]) | set(up[2:]) <= {1}
    windows = mid[2:] == shape[2:] and len(mid) == len(shape) > 2
    if pointwise and windows and (up[:2], down[:2]) == ((shape[0], mid[0]), (mid[1], shape[1])):
        return None
    expected = f"down (rank, in, 1, 1), mid (rank, rank, kh, kw), up (out, rank, 1, 1) for {shape}"
    return Misfit(shapes_of(module.parts), expected)


def _core_in_down(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(out, rank)` and `(rank, in * kh * kw)` without the scale, float64."""
    up, mid = double(parts["up"]).reshape(parts["up"].shape[:2]), double(parts["mid"])
    down = double(parts["down"]).reshape(parts["down"].shape[:2])
    moved = np.einsum("mnkl,nj->mjkl", mid, down, optimize=True)
    return up, moved.reshape(moved.shape[0], -1)


def _update(module: StructuredModule, _: Shape, __: np.ndarray | None, ___: int | None) -> LowRank:
    up, down = _core_in_down(module.parts)
    return LowRank(scale_of(module, _rank(module.parts)) * up, down)


TUCKER = Algorithm(
    "locon-tucker",
    "LoCon-Tucker",
    _ENDS,
    (_NEEDS,),
    _misfit,
    _update,
    rank=_rank,
    matrix_shape=_matrix_shape,
    bound=_bound,
)
