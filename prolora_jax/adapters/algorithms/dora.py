"""DoRA: the sum of the weight and a low-rank update gets new row norms (arXiv 2402.09353).

`update = m * (W + BA) / norm(W + BA) - W`: the source's weight W decides, and the update has full
rank. The magnitude m is one number per output row, or, in LyCORIS's older files, per input column
(formats.md 2.2); its shape says which.
"""

from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Gains, LoraModule, MadeFrom, StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    LowRank,
    Misfit,
    Parts,
    Shape,
    double,
    flat_in,
    scale_of,
    shapes_of,
)
from prolora_jax.adapters.algorithms.loha import LOHA
from prolora_jax.adapters.algorithms.lokr import LOKR
from prolora_jax.adapters.algorithms.magnitudes import (
    MAGNITUDE,
    MAGNITUDES,
    ROW_MAGNITUDE,
    gains_of,
    is_per_row,
    magnitude_of,
    sizes_of,
)
from prolora_jax.adapters.algorithms.tucker import TUCKER

_ENDS = {
    ".dora_scale": MAGNITUDE,
    ".lora_magnitude_vector": ROW_MAGNITUDE,
    ".lora_magnitude_vector.weight": ROW_MAGNITUDE,
    ".magnitude": ROW_MAGNITUDE,
}
_PAIR = frozenset({"down", "up"})
_OTHERS = (TUCKER, LOHA, LOKR)
"""LyCORIS gives their updates magnitudes, too."""


def _others(parts: Parts) -> Parts:
    return {name: array for name, array in parts.items() if name not in MAGNITUDES}


def _inner(parts: Parts) -> Algorithm | None:
    """The algorithm of the update that is added before the norms are set; None for plain LoRA."""
    names = frozenset(_others(parts))
    return next((other for other in _OTHERS if other.reads(names)), None)


def _rank(parts: Parts) -> int:
    inner = _inner(parts)
    return parts["down"].shape[0] if inner is None else inner.rank(_others(parts))


def _matrix_shape(parts: Parts) -> tuple[int, int] | None:
    inner = _inner(parts)
    if inner is not None:
        return inner.matrix_shape(_others(parts))
    return parts["up"].shape[0], int(np.prod(parts["down"].shape[1:]))


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts, (out, width) = module.parts, flat_in(shape)
    inner = _inner(parts)
    if inner is not None:
        misfit = inner.misfit(replace(module, parts=_others(parts)), shape)
        if misfit is not None:
            return misfit
    else:
        rank, down, up = _rank(parts), parts["down"].shape, parts["up"].shape
        if int(np.prod(down[1:])) != width or up[:2] != (out, rank) or not set(up[2:]) <= {1}:
            expected = f"down (rank, in) and up (out, rank) of a weight {shape}"
            return Misfit(shapes_of(parts), expected)
    if is_per_row(parts, shape) is None:
        expected = f"one number for each of {out} rows, ({out}, 1), or for each of {shape[1]}"
        return Misfit(shapes_of(parts), f"{expected} input channels, (1, {shape[1]})")
    return None


def _added(module: StructuredModule, shape: Shape) -> np.ndarray:
    """The update that is added to the weight before its norms are set, dense."""
    inner = _inner(module.parts)
    if inner is not None:
        found = inner.update(replace(module, parts=_others(module.parts)), shape, None, None)
        return found.up @ found.down if isinstance(found, LowRank) else found
    rank = _rank(module.parts)
    up, down = (double(module.parts[name]) for name in ("up", "down"))
    return scale_of(module, rank) * (up.reshape(-1, rank) @ down.reshape(rank, -1))


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    whole = weight + _added(module, shape)
    magnitude = double(magnitude_of(module.parts)).reshape(-1)
    per_row = bool(is_per_row(module.parts, shape))
    sizes = sizes_of(whole, shape, per_row=per_row)
    # A row of zeros stays one.
    ratio = np.divide(magnitude, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    window = whole.reshape(*shape[:2], -1)
    spread = ratio[:, None, None] if per_row else ratio[None, :, None]
    return (window * spread).reshape(whole.shape) - weight


def bare(module: StructuredModule) -> LoraModule | StructuredModule:
    """What is added before norms are set, as a module of its own: LoRA, or what LyCORIS has else.

    Args:
        module: of DoRA.
    """
    inner, parts = _inner(module.parts), _others(module.parts)
    alone = replace(module, parts=parts)
    if inner is not None:
        return replace(alone, algorithm=inner.name)
    made = MadeFrom(DORA.name, 1.0, alone.dtype.name)
    return LoraModule(module.path, parts["down"], parts["up"], module.alpha, made)


def gains(module: StructuredModule, shape: Shape, weight: np.ndarray) -> Gains:
    """What the magnitude of a module multiplies the sum of its weight and update with.

    Args:
        module: of DoRA.
        shape: of its weight.
        weight: as a matrix, float64.
    """
    return gains_of(module.parts, shape, weight + _added(module, shape))


DORA = Algorithm(
    "dora",
    "DoRA",
    _ENDS | {part: part for other in _OTHERS for part in other.parts},
    tuple(
        needed | {magnitude}
        for magnitude in sorted(MAGNITUDES)
        for needed in (_PAIR, *(n for other in _OTHERS for n in other.needs))
    ),
    _misfit,
    _update,
    rank=_rank,
    matrix_shape=_matrix_shape,
    needs_weight=True,
)
