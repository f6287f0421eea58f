"""BOFT of peft: a butterfly of block rotations of the input columns, and a factor for each row.

`update = s * (W M^T) - W`, M the product of the stages; stage i works on blocks of columns that
stand `2**i` half-blocks apart. With one stage, all that peft makes without its own GPU code, M is
block-diagonal.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Shape,
    double,
    flat_in,
    shapes_of,
)

_NAMES = ("boft_R", "boft_s")


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    blocks, factors = (module.parts[name].shape for name in _NAMES)
    out, width = flat_in(shape)
    right = len(blocks) == 4 and blocks[2] == blocks[3] and blocks[1] * blocks[2] == width
    right = right and int(np.prod(factors)) == max(factors, default=0) == out
    if right and blocks[0] > 1:
        halves = blocks[0] <= 64 and blocks[1] % 2 ** (blocks[0] - 1) == 0
        right = blocks[2] % 2 == 0 and halves
    if right:
        return None
    expected = f"boft_R (stages, number, size, size) with number * size = {width}, number a "
    return Misfit(
        shapes_of(module.parts),
        f"{expected}multiple of 2**(stages - 1), and boft_s of {out} numbers, for a weight {shape}",
    )


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    blocks, factors = (double(module.parts[name]) for name in _NAMES)
    skew = 0.5 * (blocks - blocks.swapaxes(-1, -2))
    one = np.eye(blocks.shape[-1])
    turns = (one - skew) @ np.linalg.inv(one + skew)
    turned = weight
    for stage, turn in enumerate(turns):
        order = _order(stage, weight.shape[1], blocks.shape)
        mixed = np.empty_like(turned)
        mixed[:, order] = turned
        columns = mixed.reshape(shape[0], blocks.shape[1], -1)
        mixed = np.einsum("bij,obj->obi", turn, columns, optimize=True).reshape(weight.shape)
        turned = mixed[:, order]
    return factors.reshape(-1, 1) * turned - weight


def _order(stage: int, width: int, blocks: Shape) -> np.ndarray:
    """Of columns at a stage: of half-blocks the even ones, then the odd ones."""
    columns = np.arange(width)
    if blocks[0] == 1:
        return columns
    halves = columns.reshape(-1, 2 ** (stage + 1), blocks[2] // 2)
    return np.concatenate((halves[:, 0::2], halves[:, 1::2]), axis=1).reshape(-1)


PEFT_BOFT = Algorithm(
    "peft-boft",
    "BOFT",
    {f".{name}": name for name in _NAMES},
    (frozenset(_NAMES),),
    _misfit,
    _update,
    needs_weight=True,
    zero_alpha_is_disputed=False,
)
