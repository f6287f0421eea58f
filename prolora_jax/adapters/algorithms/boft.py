"""BOFT of LyCORIS: a butterfly of block rotations of the output rows (arXiv 2311.06243).

Its blocks have the key of diagonal OFT and one axis more (formats.explaining), the stages. Stage i
mixes rows within `2**i` blocks: they are interleaved, rotated block by block, and put back.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Shape,
    double,
    shapes_of,
)
from prolora_jax.adapters.algorithms.oft import is_rescale, rotations

_ENDS = {"boft_blocks": "boft_blocks", ".rescale": "rescale"}


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts, rows = module.parts, shape[0]
    stages, number, size, other = parts["boft_blocks"].shape
    divides = size % 2 == 0 and number * size == rows and stages <= 64
    # The last stage mixes the most rows at once.
    divides = divides and size == other and rows % (size * 2 ** (stages - 1)) == 0
    if divides and is_rescale(parts, rows):
        return None
    expected = f"blocks (stages, number, size, size) of an even size with number * size = {rows} "
    return Misfit(
        shapes_of(parts),
        f"{expected}and 2**(stages - 1) * size a divisor of it, and rescale ({rows}, 1), for a "
        f"weight {shape}",
    )


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    blocks = double(module.parts["boft_blocks"])
    turns = rotations(blocks, module.alpha, shape[0])
    _, number, size, _ = blocks.shape
    width, turned = weight.shape[1], weight
    for stage, turn in enumerate(turns):
        near = 2**stage * size // 2
        mixed = turned.reshape(-1, 2, near, width).swapaxes(1, 2).reshape(number, size, width)
        turned = (turn @ mixed).reshape(-1, near, 2, width).swapaxes(1, 2).reshape(weight.shape)
    if "rescale" in module.parts:
        turned = double(module.parts["rescale"]).reshape(-1, 1) * turned
    return turned - weight


BOFT = Algorithm(
    "boft",
    "BOFT",
    _ENDS,
    (frozenset({"boft_blocks"}), frozenset({"boft_blocks", "rescale"})),
    _misfit,
    _update,
    needs_weight=True,
    zero_alpha_is_disputed=False,
)
