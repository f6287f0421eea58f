"""Floats of 8 bits with scales: per tensor, per row, per block.

Every writer multiplies: weight = float8 · scale, in float32, also those who call the scale an
inverse (`weight_scale_inv`). ComfyUI's files have `scale_weight`, or `weight_scale` and a tensor
`comfy_quant` that holds JSON.
"""

import json
import math

import numpy as np

from prolora_jax.errors import Refusal
from prolora_jax.io.containers.packed.packed_weight import (
    FLOATS,
    PackedModule,
    PackedWeight,
    Packing,
)
from prolora_jax.io.containers.packed.scaled import FLOAT8, scaled

FILE_MARK = "scaled_fp8"
"""ComfyUI's mark of a whole file whose weights have scales: a tensor that says its dtype."""

_SCALES = ("weight_scale", "weight_scale_inv", "scale_weight")
_MARKER = "comfy_quant"
# What ComfyUI says of how to compute with a weight is of no matter here.
_OF_COMPUTING = {"full_precision_matrix_mult"}
_BLOCK = (128, 128)
# Bits of the exponent: none of them is set in zeros and subnormal numbers.
_EXPONENTS = {"float8_e4m3fn": 0x78, "float8_e5m2": 0x7C}

UNSCALED = "fp8 without scales"
"""How weights are packed that were cast to 8 bits as they were."""

MOST_LOST = 0.01
"""Share of a weight's numbers that may be zero or subnormal before it is said to have lost some."""


def lost(numbers: np.ndarray) -> int:
    """How many numbers are zero or subnormal: what a cast without a scale makes of small ones.

    Args:
        numbers: of one of `FLOAT8`.
    """
    exponents = numbers.view(np.uint8) & np.uint8(_EXPONENTS[numbers.dtype.name])
    return exponents.size - int(np.count_nonzero(exponents))


def _open(module: PackedModule) -> PackedWeight:
    _require_plain_marker(module)
    numbers, scale = module.parts["weight"], module.one_of(_SCALES)
    assert scale is not None
    shape, said = numbers.shape, f"scales of shape {scale.shape}, {scale.dtype}"
    module.need(scale.dtype in FLOATS.values(), said, f"floats for a weight of shape {shape}")
    rows, columns = shape[0], math.prod(shape[1:])
    parts = {"weight": numbers, "scale": scale}
    if scale.size == 1:
        return scaled("fp8 by tensor", parts, (rows, columns), FLOATS["float32"])
    if scale.shape in {(rows,), (rows, *(1 for _ in shape[1:]))}:
        return scaled("fp8 by rows", parts, (1, columns), FLOATS["float32"])
    down, across = _block(module)
    grid = -(-rows // down), -(-columns // across)
    module.need(
        len(shape) == 2 and scale.shape == grid,
        said,
        f"one for the weight of shape {shape}, one for each row, or {grid} for blocks of "
        f"{down}x{across}",
    )
    return scaled(f"fp8 by blocks of {down}x{across}", parts, (down, across), FLOATS["float32"])


def _block(module: PackedModule) -> tuple[int, int]:
    match module.settings.get("weight_block_size"):
        case [int(down), int(across)] if down > 0 and across > 0:
            return down, across
    return _BLOCK


def _require_plain_marker(module: PackedModule) -> None:
    """ComfyUI's marker names the format, and whatever else was done to the weight."""
    if _MARKER not in module.parts:
        return
    said = module.said(_MARKER)
    done = said if isinstance(said, dict) else {}
    if done.get("format") not in FLOAT8 or done.keys() - {"format"} - _OF_COMPUTING:
        shown = " ".join(json.dumps(said).split())[:200]
        raise module.refusal(
            f"{_MARKER} {shown}",
            f"a format of {', '.join(FLOAT8)} and no more",
            "give a model in one of these, or one whose weights are not packed",
            Refusal.UNSUPPORTED_DTYPE,
        )


FP8_SCALED = Packing(
    name="fp8 with scales",
    marks=(*_SCALES, _MARKER),
    numbers="weight",
    dtypes=FLOAT8,
    needs=(_SCALES,),
    open=_open,
    may=("scale_input", "input_scale", "activation_scale"),
)
