"""GLoRA: a low-rank update, and the weight times another one (arXiv 2306.07967; LyCORIS).

`update = scale * (b1 b2 + W a1 a2)`. LyCORIS once stored the two factors of each product under each
other's name; the shapes tell which. The scale is `alpha / rank`, as LyCORIS's own loader and the
web interfaces read it: a file does not say whether it was trained with a rank-stabilised one.
"""

from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Parts,
    Shape,
    double,
    flat_in,
    scale_of,
    shapes_of,
)

_NAMES = ("a1", "a2", "b1", "b2")
_ENDS = {f".{name}.weight": name for name in (*_NAMES, "bm")}


class _Products(NamedTuple):
    """Both products: of the weight's factor `(in, rank)`, `(rank, in)` and of the added update."""

    inner: tuple[np.ndarray, np.ndarray]
    added: tuple[np.ndarray, np.ndarray]


def _rank(parts: Parts) -> int:
    return min(parts["a1"].shape[:2], default=1)


def _layouts(parts: Parts, shape: Shape) -> list[_Products]:
    """The products under either order of names, where the shapes allow it."""
    arrays = [parts[name] for name in _NAMES]
    if any(array.ndim != 2 and array.ndim != len(shape) for array in arrays):
        return []
    a1, a2, b1, b2 = (array.reshape(array.shape[0], -1) for array in arrays)
    orders = [_Products((a1, a2), (b1, b2)), _Products((a2, a1), (b2, b1))]
    return [order for order in orders if _fits(order, parts.get("bm"), shape)]


def _fits(order: _Products, core: np.ndarray | None, shape: Shape) -> bool:
    (out, width), channels = flat_in(shape), shape[1]
    (left, right), (up, down) = order
    rank = left.shape[1]
    if left.shape != (channels, rank) or right.shape != (rank, channels) or up.shape != (out, rank):
        return False
    if core is not None:
        return core.shape == (rank, rank, *shape[2:]) and down.shape == (rank, channels)
    return down.shape == (rank, width)


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    found = len(_layouts(module.parts, shape))
    if found == 1:
        return None
    if found == 2:
        expected = f"a rank other than {shape[0]}, with which either order of names fits"
        return Misfit(shapes_of(module.parts), expected)
    expected = "a1 (in, rank), a2 (rank, in), b1 (out, rank), b2 (rank, in), or 1 and 2 the other "
    return Misfit(shapes_of(module.parts), f"{expected}way round, for a weight {shape}")


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    parts = module.parts
    order = _layouts(parts, shape)[0]
    left, right, up, down = (double(array) for array in (*order.inner, *order.added))
    if "bm" in parts:
        core = np.einsum("mnkl,nj->mjkl", double(parts["bm"]), down)
        down = core.reshape(core.shape[0], -1)
    window = weight.reshape(shape[0], shape[1], -1)
    turned = np.einsum("oik,ir,rj->ojk", window, left, right, optimize=True)
    scale = scale_of(module, left.shape[1])
    return scale * (up @ down + turned.reshape(weight.shape))


GLORA = Algorithm(
    "glora",
    "GLoRA",
    _ENDS,
    (frozenset(_NAMES), frozenset({*_NAMES, "bm"})),
    _misfit,
    _update,
    rank=_rank,
    needs_weight=True,
)
