"""VeRA: two vectors for each layer, and two random matrices that all layers share.

`update = (b * B) (d * A)`: a layer takes as many rows of B and columns of A as it has (arXiv
2310.11454). The shared matrices are in the file once (formats.explaining), or not at all: then they
come of a seed of torch's random numbers, which this package does not draw.
"""

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    LowRank,
    Misfit,
    Parts,
    Shape,
    double,
    shapes_of,
)

_OWN = frozenset({"vera_lambda_b", "vera_lambda_d"})
_SHARED = frozenset({"vera_A", "vera_B"})


def _rank(parts: Parts) -> int:
    return parts["vera_lambda_d"].size


def _bound(parts: Parts, shape: tuple[int, int]) -> int:
    return min(*shape, _rank(parts))


def _unusable(module: StructuredModule) -> Misfit | None:
    if module.parts.keys() >= _SHARED:
        return None
    return Misfit(
        "no shared vera_A and vera_B",
        "both in the file: without them they come of a torch random seed; save the adapter with "
        "save_projection=True",
    )


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts, rank = module.parts, _rank(module.parts)
    a, b, own = parts["vera_A"].shape, parts["vera_B"].shape, parts["vera_lambda_b"].size
    square = len(a) == len(b) == len(shape) == 2 and a[0] == b[1] == rank
    if square and own == shape[0] <= b[0] and shape[1] <= a[1]:
        return None
    expected = f"vera_lambda_b ({shape[0]},), vera_lambda_d (rank,), vera_A (rank, {shape[1]} or "
    return Misfit(
        shapes_of(parts),
        f"{expected}more), vera_B ({shape[0]} or more, rank) for a linear weight {shape}",
    )


def _update(module: StructuredModule, shape: Shape, *_: object) -> LowRank:
    out, width = shape
    names = ("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")
    b, d, shared_a, shared_b = (double(module.parts[name]) for name in names)
    return LowRank(b.reshape(-1, 1) * shared_b[:out], d.reshape(-1, 1) * shared_a[:, :width])


VERA = Algorithm(
    "vera",
    "VeRA",
    {f".{name}": name for name in sorted(_OWN | _SHARED)},
    (_OWN, _OWN | _SHARED),
    _misfit,
    _update,
    rank=_rank,
    bound=_bound,
    zero_alpha_is_disputed=False,
    unusable=_unusable,
)
