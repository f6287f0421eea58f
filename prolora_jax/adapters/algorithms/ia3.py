"""IA3: every row of the weight, or every input channel, times a number (arXiv 2205.05638).

LyCORIS adds: `update = W * w`; peft replaces: `update = W * (l - 1)`. LyCORIS's vector is stored as
`.weight`, which only `.on_input` beside it explains (formats.explaining). peft multiplies the bias
of a layer that is no feed-forward one, too, where the layer has one; LyCORIS leaves it.
"""

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule
from prolora_jax.adapters.algorithms.algorithm import (
    Algorithm,
    Misfit,
    Shape,
    double,
    setting,
    shapes_of,
)

_ENDS = {".ia3_l": "ia3_l", ".on_input": "on_input", "ia3_weight": "ia3_weight"}
_NEEDS = (frozenset({"ia3_l"}), frozenset({"ia3_weight", "on_input"}))


def _is_on_input(module: StructuredModule, shape: Shape) -> bool | None:
    """Whether the numbers are for input channels; None where nothing says it."""
    parts = module.parts
    if "on_input" in parts:
        said = float(parts["on_input"].reshape(-1)[0])
        # Of a file's header alone nothing says it but the vector's length.
        return parts["ia3_weight"].size != shape[0] if np.isnan(said) else bool(said)
    vector = parts["ia3_l"]
    if vector.ndim == 2 or shape[0] != shape[1]:
        return vector.shape[:2] == (1, shape[1])
    # peft's vector of a convolution is (1, n, 1, 1) on either side: its configuration says which.
    names = setting(module, "feedforward_modules")
    if not isinstance(names, list):
        return None if names else False
    return any(isinstance(name, str) and module.path.endswith(name) for name in names)


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts = module.parts
    if parts.keys() not in _NEEDS or parts.get("on_input", np.zeros(1)).size != 1:
        return Misfit(shapes_of(parts), "ia3_l alone, or a vector and the one number on_input")
    vector = parts.get("ia3_l", parts.get("ia3_weight"))
    assert vector is not None  # `_NEEDS`
    on_input = _is_on_input(module, shape)
    if on_input is None:
        return Misfit(
            f"{shapes_of(parts)} and a pattern for feedforward_modules",
            f"names in feedforward_modules, which say the axis, for a weight {shape}",
        )
    wanted = shape[1] if on_input else shape[0]
    if vector.size != wanted or max(vector.shape, default=0) != wanted:
        side = "input channels" if on_input else "rows"
        return Misfit(shapes_of(parts), f"one number for each of {wanted} {side} of {shape}")
    return None


def _update(
    module: StructuredModule, shape: Shape, weight: np.ndarray | None, _: int | None
) -> np.ndarray:
    assert weight is not None  # `needs_weight`
    parts = module.parts
    if "ia3_l" in parts:
        factor = double(parts["ia3_l"]).reshape(-1) - 1.0
    else:
        factor = double(parts["ia3_weight"]).reshape(-1)
    if not _is_on_input(module, shape):
        return weight * factor[:, None]
    window = weight.reshape(shape[0], shape[1], -1)
    return (window * factor[None, :, None]).reshape(weight.shape)


def _added_to_bias(module: StructuredModule, shape: Shape, bias: np.ndarray) -> np.ndarray | None:
    if "ia3_l" not in module.parts or _is_on_input(module, shape):
        return None
    return bias * (double(module.parts["ia3_l"]).reshape(-1) - 1.0)


IA3 = Algorithm(
    "ia3",
    "IA3",
    _ENDS,
    _NEEDS,
    _misfit,
    _update,
    needs_weight=True,
    zero_alpha_is_disputed=False,
    added_to_bias=_added_to_bias,
)
