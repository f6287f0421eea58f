"""LoKr: the Kronecker product of two small matrices (formats.md 2.1; LyCORIS, peft).

`update = scale * kron(w1, w2)`. Each of the two is full (`w1`), or two factors (`w1_a @ w1_b`);
w2 of a convolution may have a core, `t2`. Where both are full nothing scales them, whatever alpha
says.

The singular form of a Kronecker product is that of its halves: the products of their singular
values, and of their vectors. So the rank is often full, and the best factors cost next to nothing.
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


def _rank(parts: Parts) -> int:
    """What alpha is divided by: the inner axis of w2, or of w1 where w2 is full."""
    for name in ("lokr_w2_b", "lokr_w1_b"):
        if name in parts:
            return parts[name].shape[0]
    return 1


def _scale(module: StructuredModule) -> float:
    both_full = {"lokr_w1", "lokr_w2"} <= module.parts.keys()
    return 1.0 if both_full else scale_of(module, _rank(module.parts))


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


def _spectrum(module: StructuredModule) -> np.ndarray:
    s1, s2 = (np.linalg.svd(half, compute_uv=False) for half in _halves(module.parts))
    sigma = np.sort(np.multiply.outer(s1, s2), axis=None)[::-1]
    return abs(_scale(module)) * sigma[sigma > _ROUNDING * sigma[0]]


def _update(module: StructuredModule, _: Shape, __: np.ndarray | None, most: int | None) -> LowRank:
    (u1, s1, v1), (u2, s2, v2) = (
        np.linalg.svd(half, full_matrices=False) for half in _halves(module.parts)
    )
    sigma = np.multiply.outer(s1, s2)
    used = max(int(np.count_nonzero(sigma > _ROUNDING * sigma.max())), 1)
    columns = used if most is None else min(used, most)
    order = np.argsort(-sigma, axis=None, kind="stable")[:columns]
    i, j = np.unravel_index(order, sigma.shape)
    up = (u1[:, None, i] * u2[None, :, j]).reshape(-1, len(order))
    down = (v1[i, :, None] * v2[j, None, :]).reshape(len(order), -1)
    scale = _scale(module)
    total = None if columns == used else scale * scale * float(np.square(sigma).sum())
    return LowRank(up * (scale * sigma[i, j]), down, singular=True, total=total)


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
