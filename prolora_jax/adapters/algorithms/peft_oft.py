"""OFT of peft: blocks of input channels are rotated (arXiv 2306.07280; peft's `OFTConfig`).

`update = W R^T - W`. A block's skew matrix is stored as its upper triangle, from which the size
follows; one stored block serves all. The configuration decides how R is made of it, so that the
tensors alone are not enough.
"""

from math import isqrt

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Shape,
    double,
    flat_in,
    setting,
    shapes_of,
)

_MOST_TERMS = 100
"""The file's author chooses how many powers are summed up; peft's own number is 5."""


def _block_size(triangle: int) -> int | None:
    """Of a matrix with so many numbers above its diagonal."""
    size = (1 + isqrt(1 + 8 * triangle)) // 2
    return size if size * (size - 1) // 2 == triangle else None


def _unusable(module: StructuredModule) -> Misfit | None:
    series = setting(module, "use_cayley_neumann")
    terms, bound = setting(module, "num_cayley_neumann_terms"), setting(module, "eps", 0.0)
    if not isinstance(series, bool):
        return Misfit(
            f"use_cayley_neumann {series} in the configuration",
            "peft's adapter_config.json, which says how rotations are made of its numbers",
        )
    if series and not (type(terms) is int and 0 < terms <= _MOST_TERMS):
        return Misfit(
            f"num_cayley_neumann_terms {terms}", f"a whole number from 1 to {_MOST_TERMS}"
        )
    if setting(module, "coft") and not (type(bound) in {int, float} and 0 < bound < np.inf):
        return Misfit(f"coft with eps {bound}", "a number above 0")
    return None


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    stored, width = module.parts["oft_R"].shape, flat_in(shape)[1]
    size = _block_size(stored[1]) if len(stored) == 2 else None
    if size is not None and width % size == 0 and stored[0] in {1, width // size}:
        return None
    expected = f"(blocks, size * (size - 1) / 2) with blocks * size = {width}, the columns of a "
    return Misfit(shapes_of(module.parts), f"{expected}weight {shape}, or with one block")


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    stored = double(module.parts["oft_R"])
    size = _block_size(stored.shape[1])
    assert size is not None  # `_misfit`
    skew = np.zeros((stored.shape[0], size, size))
    skew[:, *np.triu_indices(size, 1)] = stored
    skew -= skew.swapaxes(1, 2)
    if setting(module, "coft"):
        most = float(setting(module, "eps")) / stored.shape[0] ** 0.5
        norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
        skew = skew * np.where(norms > most, most / np.where(norms > 0, norms, 1.0), 1.0)
    if setting(module, "use_cayley_neumann"):
        turn = _series(skew, setting(module, "num_cayley_neumann_terms"))
    else:
        one = np.eye(size)
        turn = (one - skew) @ np.linalg.inv(one + skew)
    columns = weight.reshape(shape[0], -1, size)
    turn = np.broadcast_to(turn, (columns.shape[1], size, size))
    return np.einsum("bij,obj->obi", turn, columns, optimize=True).reshape(weight.shape) - weight


def _series(skew: np.ndarray, terms: int) -> np.ndarray:
    """`1 + 2 Q + 2 Q^2 + ...`, the last power once: peft sums it so, and from 3 terms on cubes."""
    total, power = np.broadcast_to(np.eye(skew.shape[-1]), skew.shape).copy(), skew
    if terms == 1:
        return total
    total += 2.0 * skew
    if terms == 2:
        return total
    last = max(terms - 1, 3)
    for exponent in range(2, last + 1):
        power = power @ skew
        total += power if exponent == last else 2.0 * power
    return total


PEFT_OFT = Algorithm(
    "peft-oft",
    "OFT",
    {".oft_R.weight": "oft_R"},
    (frozenset({"oft_R"}),),
    _misfit,
    _update,
    needs_weight=True,
    zero_alpha_is_disputed=False,
    unusable=_unusable,
)
