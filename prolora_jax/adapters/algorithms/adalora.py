"""AdaLoRA: LoRA with a number for each rank column (arXiv 2303.10512; peft).

`update = B diag(E) A * lora_alpha / (rank + 1e-5)`, as peft computes it; an alpha that is not above
0 is the rank there. Without peft's configuration the scale is unknown.
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
    setting,
    shapes_of,
)

_NAMES = ("down", "up", "lora_E")


def _rank(parts: Parts) -> int:
    return parts["lora_E"].size


def _matrix_shape(parts: Parts) -> tuple[int, int]:
    return parts["up"].shape[0], int(np.prod(parts["down"].shape[1:]))


def _bound(parts: Parts, _: tuple[int, int]) -> int:
    return _rank(parts)


def _unusable(module: StructuredModule) -> Misfit | None:
    if setting(module, "lora_alpha") is None:
        return Misfit("no lora_alpha", "peft's adapter_config.json, which says the scale")
    return None


def _misfit(module: StructuredModule, shape: Shape) -> Misfit | None:
    parts, (out, width) = module.parts, flat_in(shape)
    down, up, middle = (parts[name].shape for name in ("down", "up", "lora_E"))
    rank = _rank(parts)
    right = down[:1] == (rank,) and int(np.prod(down[1:])) == width and up[:2] == (out, rank)
    if right and middle[:1] == (rank,) and int(np.prod(up)) == out * rank:
        return None
    expected = "lora_A (rank, in), lora_B (out, rank) and lora_E (rank, 1) for a weight"
    return Misfit(shapes_of(parts), f"{expected} {shape}")


def _update(module: StructuredModule, _: Shape, *__: object) -> LowRank:
    down, up, middle = (double(module.parts[name]) for name in _NAMES)
    rank = middle.size
    alpha = float(setting(module, "lora_alpha"))
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    return LowRank(scale * up.reshape(-1, rank) * middle.reshape(-1), down.reshape(rank, -1))


ADALORA = Algorithm(
    "adalora",
    "AdaLoRA",
    {".lora_E": "lora_E", "down": "down", "up": "up"},
    (frozenset(_NAMES),),
    _misfit,
    _update,
    rank=_rank,
    matrix_shape=_matrix_shape,
    bound=_bound,
    zero_alpha_is_disputed=False,
    unusable=_unusable,
)
