"""LoKr: the Kronecker product of two small matrices (formats.md 2.1; LyCORIS, peft).

`update = scale * kron(w1, w2)`. Each of the two is full (`w1`), or two factors (`w1_a @ w1_b`);
w2 of a convolution may have a core, `t2`. Where both are full nothing scales them in LyCORIS,
whatever alpha says; peft scales them like all others, by the rank of its configuration.

The singular form of a Kronecker product is that of its halves: the products of their singular
values, and of their vectors. So the rank is often full, and the best factors cost next to nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    LowRank,
    Misfit,
    Parts,
    Shape,
    Spectrum,
    double,
    flat_in,
    scale_of,
    shapes_of,
)

_ENDS = {
    f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
}
_NEEDS = tuple(
    frozenset({f"lokr_{name}" for name in (*first, *second)})
    for first in (("w1",), ("w1_a", "w1_b"))
    for second in (("w2",), ("w2_a", "w2_b"), ("w2_a", "w2_b", "t2"))
)

_ROUNDING = 1e-13
"""Singular values below this share of the largest are those of a product of less rank."""
_CLEAR = 1e-4
"""Above this share of the largest, singular values by Gram matrices are good to 1e-8."""


def _rank(parts: Parts) -> int:
    """What alpha is divided by: the inner axis of w2, or of w1 where w2 is full."""
    for name in ("lokr_w2_b", "lokr_w1_b"):
        if name in parts:
            return parts[name].shape[0]
    return 1


def is_full(parts: Parts) -> bool:
    """Whether both matrices are full, so that no tensor says a rank."""
    return {"lokr_w1", "lokr_w2"} <= parts.keys()


def _scale(module: StructuredModule) -> float:
    if is_full(module.parts) and not module.settings:
        return 1.0
    return scale_of(module, _rank(module.parts))  # of a full one of peft's, for a rank of 1


def _halves(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """w1 `(out1, in1)` and w2 `(out2, in2 * kh * kw)`, float64."""
    first = parts.get("lokr_w1")
    if first is None:
        w1 = double(parts["lokr_w1_a"]) @ double(parts["lokr_w1_b"])
    else:
        w1 = double(first).reshape(first.shape[:2])
    second = parts.get("lokr_w2")
    if second is not None:
        return w1, double(second).reshape(second.shape[0], -1)
    a, b, core = double(parts["lokr_w2_a"]), double(parts["lokr_w2_b"]), parts.get("lokr_t2")
    if core is None:
        return w1, a @ b.reshape(b.shape[0], -1)
    whole = np.einsum("ijkl,ip,jr->prkl", double(core), a, b, optimize=True)
    return w1, whole.reshape(whole.shape[0], -1)


def _half_shapes(parts: Parts) -> tuple[tuple[int, int], tuple[int, int]]:
    first = parts.get("lokr_w1")
    if first is None:
        one = parts["lokr_w1_a"].shape[0], parts["lokr_w1_b"].shape[-1]
    else:
        one = first.shape[0], first.shape[1]
    second, core = parts.get("lokr_w2"), parts.get("lokr_t2")
    if second is not None:
        return one, flat_in(second.shape)
    a, b = parts["lokr_w2_a"].shape, parts["lokr_w2_b"].shape
    if core is None:
        return one, (a[0], int(np.prod(b[1:])))
    return one, (a[-1], b[-1] * int(np.prod(core.shape[2:])))


def _matrix_shape(parts: Parts) -> tuple[int, int]:
    (out1, in1), (out2, in2) = _half_shapes(parts)
    return out1 * out2, in1 * in2


def _bound(parts: Parts, shape: tuple[int, int]) -> int:
    inner = [
        min(*half, *(parts[name].shape[0] for name in (f"lokr_w{number}_b",) if name in parts))
        for number, half in zip("12", _half_shapes(parts), strict=True)
    ]
    return min(*shape, inner[0] * inner[1])


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts = module.parts
    fits = _inner_axes_meet(parts) and _matrix_shape(parts) == flat_in(shape)
    second, core = parts.get("lokr_w2"), parts.get("lokr_t2")
    if second is not None and second.ndim == len(shape) > 2:
        fits = fits and second.shape[2:] == shape[2:]
    if core is not None:
        fits = fits and core.shape[2:] == shape[2:]
    if fits:
        return None
    return Misfit(shapes_of(parts), f"w1 and w2 whose Kronecker product is {shape}")


def _inner_axes_meet(parts: Parts) -> bool:
    first = parts.get("lokr_w1")
    if first is not None and (first.ndim < 2 or not set(first.shape[2:]) <= {1}):
        return False
    if "lokr_w1_a" in parts:
        a, b = parts["lokr_w1_a"].shape, parts["lokr_w1_b"].shape
        if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
            return False
    if "lokr_w2_a" not in parts:
        return parts["lokr_w2"].ndim >= 2
    a, b, core = parts["lokr_w2_a"].shape, parts["lokr_w2_b"].shape, parts.get("lokr_t2")
    if core is None:
        return len(a) == 2 <= len(b) and a[1] == b[0]
    return core.ndim == 4 and core.shape[:2] == (a[0], b[0]) and len(a) == len(b) == 2


class _Half(NamedTuple):
    """The singular form of one of the two, as far as it is held.

    Attributes:
        sigma: singular values, descending.
        short: vectors of the shorter side, or of the first of two alike, in columns; None where
            they were not asked for.
    """

    sigma: np.ndarray
    short: np.ndarray | None


def _is_wide(matrix: np.ndarray) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _by_gram(matrix: np.ndarray, *, vectors: bool) -> _Half:
    """From the Gram matrix of the shorter side, in a third of the time of a decomposition.

    Values are good to eps times the largest squared over their own; what is cut off by vectors is
    the tail, whatever rounding does to them.
    """
    gram = matrix @ matrix.T if _is_wide(matrix) else matrix.T @ matrix
    if vectors:
        squares, short = np.linalg.eigh(gram)
        short = short[:, ::-1]
    else:
        squares, short = np.linalg.eigvalsh(gram), None
    return _Half(np.sqrt(np.maximum(squares[::-1], 0.0)), short)


def _by_svd(matrix: np.ndarray, *, vectors: bool) -> _Half:
    if not vectors:
        return _Half(np.linalg.svd(matrix, compute_uv=False), None)
    u, sigma, v = np.linalg.svd(matrix, full_matrices=False)
    return _Half(sigma, u if _is_wide(matrix) else v.T)


def _decomposed(
    module: StructuredModule, most: int | None, *, vectors: bool = True
) -> tuple[_Half, _Half]:
    """Both halves; by their Gram matrices where so many products are large that the rest is cut."""
    w1, w2 = _halves(module.parts)
    if most is not None and min(w1.shape) * min(w2.shape) > most:
        found = _by_gram(w1, vectors=vectors), _by_gram(w2, vectors=vectors)
        products = np.multiply.outer(found[0].sigma, found[1].sigma)
        if np.count_nonzero(products > _CLEAR * products.max()) > most:
            return found
    return _by_svd(w1, vectors=vectors), _by_svd(w2, vectors=vectors)


def _order(halves: tuple[_Half, _Half], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Which values of the two have the largest products, by size."""
    products = np.multiply.outer(halves[0].sigma, halves[1].sigma)
    order = np.argsort(-products, axis=None, kind="stable")[:columns]
    i, j = np.unravel_index(order, products.shape)
    return i, j


def _used(sigma: np.ndarray) -> int:
    return max(int(np.count_nonzero(sigma > _ROUNDING * sigma.max())), 1)


def _spectrum(module: StructuredModule, most: int | None, wanted: bool) -> Spectrum:  # noqa: FBT001
    halves = _decomposed(module, most, vectors=wanted)
    products = np.multiply.outer(halves[0].sigma, halves[1].sigma)
    sigma = np.sort(products, axis=None)[::-1]
    found = abs(_scale(module)) * sigma[sigma > _ROUNDING * sigma[0]]
    size = sum(part.size for part in module.parts.values())

    def started(columns: int) -> Callable[[], LowRank] | None:
        places = _order(halves, columns)
        first, second = (_held(h, int(k.max()) + 1) for h, k in zip(halves, places, strict=True))
        if first.short is None or second.short is None:
            return None
        if first.short.size + second.short.size > size:
            return None
        return lambda: _columns(module, (first, second), *places)

    return Spectrum(found, started)


def _held(half: _Half, columns: int) -> _Half:
    """Without the vectors that are not needed, which a view would hold, too."""
    short = None if half.short is None else half.short[:, :columns].copy()
    return _Half(half.sigma, short)


def _sides(matrix: np.ndarray, half: _Half, most: int) -> tuple[np.ndarray, ...]:
    """Left and right vectors of a half, in columns, and their norms: one side has the values."""
    assert half.short is not None
    short, sizes = half.short[:, :most], half.sigma[:most]
    ones = np.ones_like(sizes)
    if _is_wide(matrix):
        return short, matrix.T @ short, ones, sizes
    return matrix @ short, short, sizes, ones


def _columns(
    module: StructuredModule, halves: tuple[_Half, _Half], i: np.ndarray, j: np.ndarray
) -> LowRank:
    """The update's singular form, for those products of values."""
    w1, w2 = _halves(module.parts)
    left1, right1, sizes1, lengths1 = _sides(w1, halves[0], int(i.max()) + 1)
    left2, right2, sizes2, lengths2 = _sides(w2, halves[1], int(j.max()) + 1)
    scale = _scale(module)
    sizes, lengths = abs(scale) * sizes1[i] * sizes2[j], lengths1[i] * lengths2[j]
    both = (sizes > 0) & (lengths > 0)
    ratio = np.sqrt(np.divide(lengths, sizes, out=np.ones_like(sizes), where=both))
    first, second = left1[:, i] * (scale * ratio), (right1[:, i] / ratio).T
    up = (first[:, None] * left2[None, :, j]).reshape(-1, len(i))
    down = (second[:, :, None] * right2.T[j][:, None, :]).reshape(len(i), -1)
    return LowRank(up, down, singular=True, even=True)


def _update(module: StructuredModule, _: Shape, __: np.ndarray | None, most: int | None) -> LowRank:
    halves = _decomposed(module, most)
    products = np.multiply.outer(halves[0].sigma, halves[1].sigma)
    used = _used(products)
    columns = used if most is None else min(used, most)
    update = _columns(module, halves, *_order(halves, columns))
    if columns == used:
        return update
    # By NumPy, to which too large a number is infinite, and not an error.
    return update._replace(total=float(np.square(_scale(module) * products).sum()))


LOKR = Algorithm(
    "lokr",
    "LoKr",
    _ENDS,
    _NEEDS,
    _misfit,
    _update,
    rank=_rank,
    matrix_shape=_matrix_shape,
    bound=_bound,
    spectrum=_spectrum,
)
