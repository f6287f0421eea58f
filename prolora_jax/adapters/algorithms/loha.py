"""LoHa: the element-wise product of two low-rank matrices (formats.md 2.1; LyCORIS, peft).

`update = scale * (w1_a @ w1_b) * (w2_a @ w2_b)`. The product of two matrices of rank r has rank
r * r at most, and its factors are the row-wise products of theirs (Khatri-Rao): nothing is ever
dense. A convolution may have a core, `t1` and `t2`, and then its factors stand the other way round.
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

_ENDS = {f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
_PLAIN = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
_NEEDS = (_PLAIN, _PLAIN | {"hada_t1", "hada_t2"})
_HALVES = ("1", "2")


def _rank(parts: Parts) -> int:
    return parts["hada_w1_b"].shape[0]


def _half(parts: Parts, number: str) -> tuple[np.ndarray, np.ndarray]:
    """One of the two matrices as factors `(out, rank)` and `(rank, in * kh * kw)`, float64."""
    a, b = (double(parts[f"hada_w{number}_{side}"]) for side in "ab")
    core = parts.get(f"hada_t{number}")
    if core is None:
        return a, b.reshape(b.shape[0], -1)
    # t (rank, rank, kh, kw), a (rank, out), b (rank, in): the window goes with the inner side.
    inner = np.einsum("ijkl,jr->irkl", double(core), b)
    return a.T, inner.reshape(inner.shape[0], -1)


def _matrix_shape(parts: Parts) -> tuple[int, int]:
    core, a, b = parts.get("hada_t1"), parts["hada_w1_a"], parts["hada_w1_b"]
    if core is None:
        return a.shape[0], int(np.prod(b.shape[1:]))
    return a.shape[-1], b.shape[-1] * int(np.prod(core.shape[2:]))


def _bound(parts: Parts, shape: tuple[int, int]) -> int:
    return min(*shape, _rank(parts) * parts["hada_w2_b"].shape[0])


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts = module.parts
    (out, width), window = flat_in(shape), shape[2:]
    for number in _HALVES:
        a, b = parts[f"hada_w{number}_a"].shape, parts[f"hada_w{number}_b"].shape
        core = parts.get(f"hada_t{number}")
        if core is None:
            right = len(a) == 2 and a == (out, b[0]) and int(np.prod(b[1:])) == width
        else:
            ranks = core.shape[:2]
            right = (
                core.ndim == 4
                and core.shape[2:] == window
                and a == (ranks[0], out)
                and b == (ranks[1], shape[1])
            )
        if not right:
            expected = f"w_a (out, rank), w_b (rank, in) for a weight {shape}; with a core w_a "
            return Misfit(shapes_of(parts), f"{expected}(rank, out), w_b (rank, in)")
    return None


def _update(module: StructuredModule, _: Shape, __: np.ndarray | None, ___: int | None) -> LowRank:
    (up1, down1), (up2, down2) = (_half(module.parts, number) for number in _HALVES)
    up = (up1[:, :, None] * up2[:, None, :]).reshape(up1.shape[0], -1)
    down = (down1[:, None, :] * down2[None, :, :]).reshape(-1, down1.shape[1])
    return LowRank(scale_of(module, _rank(module.parts)) * up, down)


LOHA = Algorithm(
    "loha",
    "LoHa",
    _ENDS,
    _NEEDS,
    _misfit,
    _update,
    rank=_rank,
    matrix_shape=_matrix_shape,
    bound=_bound,
)
