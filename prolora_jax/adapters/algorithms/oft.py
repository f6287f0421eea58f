"""Diagonal OFT of kohya and LyCORIS: blocks of output rows are rotated (arXiv 2306.07280).

`update = rescale * R^T W - W`, R block by block the Cayley transform of `blocks - blocks^T`. Alpha
is no scale: times the number of rows it bounds the norm of all blocks; none and numbers that are
not above 0 bound nothing, as in LyCORIS (formats.md 2.1). LyCORIS's older `oft_diag` is refused:
programs disagree on whether it is R, R - 1 or what R is made of.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Parts,
    Shape,
    double,
    shapes_of,
)

_ENDS = {".oft_blocks": "oft_blocks", ".rescale": "rescale"}
_TINY = 1e-8
"""What LyCORIS adds to the norm before it divides by it."""


def rotations(blocks: np.ndarray, alpha: float | None, rows: int) -> np.ndarray:
    """The rotation of each block, for any number of axes before the last two.

    Args:
        blocks: float64, square in the last two axes.
        alpha: times `rows` the largest norm of all skew parts together.
        rows: of the weight.
    """
    skew = blocks - blocks.swapaxes(-1, -2)
    most = (alpha or 0.0) * rows
    size = float(np.linalg.norm(skew)) + _TINY
    if 0.0 < most < size:
        skew = skew * (most / size)
    one = np.eye(blocks.shape[-1])
    return (one + skew) @ np.linalg.inv(one - skew)


def is_rescale(parts: Parts, rows: int) -> bool:
    """Whether the factors of rows, if there are any, are one for each."""
    rescale = parts.get("rescale")
    return rescale is None or (rescale.size == rows and rescale.shape[:1] == (rows,))


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    blocks = module.parts["oft_blocks"].shape
    square = len(blocks) == 3 and blocks[1] == blocks[2]
    if square and blocks[0] * blocks[1] == shape[0] and is_rescale(module.parts, shape[0]):
        return None
    expected = f"blocks (number, size, size) with number * size = {shape[0]}, the rows of a weight"
    return Misfit(shapes_of(module.parts), f"{expected} {shape}, and rescale ({shape[0]}, 1)")


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    blocks = double(module.parts["oft_blocks"])
    turn = rotations(blocks, module.alpha, shape[0])
    rows = weight.reshape(blocks.shape[0], blocks.shape[1], -1)
    turned = (turn.swapaxes(1, 2) @ rows).reshape(weight.shape)
    if "rescale" in module.parts:
        turned = double(module.parts["rescale"]).reshape(-1, 1) * turned
    return turned - weight


OFT = Algorithm(
    "oft",
    "OFT",
    _ENDS,
    (frozenset({"oft_blocks"}), frozenset({"oft_blocks", "rescale"})),
    _misfit,
    _update,
    needs_weight=True,
    zero_alpha_is_disputed=False,
)
