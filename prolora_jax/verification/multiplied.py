"""Dense updates of algorithms that multiply the weight, and of AdaLoRA and VeRA, in float64.

Written from the papers and from what LyCORIS and peft compute, with whole matrices: a rotation is
one matrix of all rows or columns here. Nothing of `adapters.algorithms` is imported.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Float

from prolora_jax.adapters.adapter import StructuredModule

Shape = tuple[int, ...]
Matrix = Float[np.ndarray, "out in"]


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _ia3(module: StructuredModule, shape: Shape, weight: np.ndarray) -> Matrix:
    parts = module.parts
    if "on_input" in parts:
        on_input, share = float(parts["on_input"].sum()) != 0, _wide(parts["ia3_weight"]).ravel()
    else:
        vector = parts["ia3_l"]
        on_input, share = vector.shape[:2] == (1, shape[1]), _wide(vector).ravel() - 1
        if on_input and vector.ndim == 4 and shape[0] == shape[1]:
            names = module.settings.get("feedforward_modules") or []
            on_input = any(module.path.endswith(name) for name in names)
    if on_input:
        return weight @ np.diag(np.repeat(share, int(np.prod(shape[2:]))))
    return np.diag(share) @ weight


def _diagonal(blocks: np.ndarray) -> np.ndarray:
    """Blocks on the diagonal of one matrix."""
    number, size, _ = blocks.shape
    whole = np.zeros((number * size, number * size))
    for i, block in enumerate(blocks):
        whole[i * size : (i + 1) * size, i * size : (i + 1) * size] = block
    return whole


def _bounded(blocks: np.ndarray, bound: float) -> np.ndarray:
    skew = blocks - np.swapaxes(blocks, -1, -2)
    size = np.sqrt(np.sum(skew**2)) + 1e-8
    return skew * bound / size if 0 < bound < size else skew


def _cayley(skew: np.ndarray) -> np.ndarray:
    """`(1 + Q)(1 - Q)^-1`."""
    one = np.eye(len(skew))
    return np.linalg.solve((one - skew).T, (one + skew).T).T


def _rescaled(module: StructuredModule, turned: Matrix) -> Matrix:
    rescale = module.parts.get("rescale")
    return turned if rescale is None else np.diag(_wide(rescale).ravel()) @ turned


def _oft(module: StructuredModule, shape: Shape, weight: np.ndarray) -> Matrix:
    bound = shape[0] * (module.alpha or 0)
    turn = _cayley(_diagonal(_bounded(_wide(module.parts["oft_blocks"]), bound)))
    return _rescaled(module, turn.T @ weight) - weight


def _boft(module: StructuredModule, shape: Shape, weight: np.ndarray) -> Matrix:
    bound = shape[0] * (module.alpha or 0)
    stages = _bounded(_wide(module.parts["boft_blocks"]), bound)
    half, turned = stages.shape[-1] // 2, weight
    for stage, skew in enumerate(stages):
        near = half * 2**stage
        # Row 2 * j + g of a group comes from its row g * near + j.
        order = [
            start + g * near + j
            for start in range(0, shape[0], 2 * near)
            for j in range(near)
            for g in (0, 1)
        ]
        mixing = np.eye(shape[0])[order]
        turned = mixing.T @ _cayley(_diagonal(skew)) @ mixing @ turned
    return _rescaled(module, turned) - weight


def _peft_oft(module: StructuredModule, _: Shape, weight: np.ndarray) -> Matrix:
    stored, settings = _wide(module.parts["oft_R"]), module.settings
    size = 2
    while size * (size - 1) // 2 < stored.shape[1]:
        size += 1
    blocks = []
    for numbers in stored:
        skew, rest = np.zeros((size, size)), iter(numbers)
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j] = next(rest)
                skew[j, i] = -skew[i, j]
        if settings.get("coft"):
            most, norm = settings["eps"] / np.sqrt(len(stored)), np.sqrt((skew**2).sum())
            skew = skew * most / norm if norm > most else skew
        if settings["use_cayley_neumann"]:
            factors = _powers(settings["num_cayley_neumann_terms"])
            powers = [np.linalg.matrix_power(skew, p) for p in range(len(factors))]
            blocks.append(np.tensordot(factors, powers, 1))
        else:
            blocks.append(_cayley(skew).T)
    number = weight.shape[1] // size
    turn = _diagonal(np.array(blocks * number if len(blocks) == 1 else blocks))
    return weight @ turn.T - weight


def _powers(terms: int) -> list[float]:
    """Factors of the powers of Q that peft sums up, from `1` on."""
    if terms < 3:
        return [1.0, 2.0][:terms]
    return [1.0, *[2.0] * max(terms - 2, 2), 1.0]


def _peft_boft(module: StructuredModule, _: Shape, weight: np.ndarray) -> Matrix:
    blocks = _wide(module.parts["boft_R"])
    turned = weight.T
    for stage, block in enumerate(blocks):
        order = np.arange(len(turned))
        if len(blocks) > 1:
            order = np.array(list(_halves(len(turned), 2 ** (stage + 1), block.shape[1] // 2)))
        mixing = np.eye(len(turned))[order]
        skew = (block - np.swapaxes(block, 1, 2)) / 2
        turned = mixing @ _cayley(_diagonal(skew)).T @ mixing.T @ turned
    return np.diag(_wide(module.parts["boft_s"]).ravel()) @ turned.T - weight


def _halves(width: int, many: int, half: int) -> Iterator[int]:
    for start in range(0, width, many * half):
        for first in (0, 1):
            for i in range(first, many, 2):
                yield from range(start + i * half, start + (i + 1) * half)


def _glora(module: StructuredModule, shape: Shape, weight: np.ndarray) -> Matrix:
    parts = module.parts
    a1, a2, b1, b2 = (
        _wide(parts[name]).reshape(len(parts[name]), -1) for name in ("a1", "a2", "b1", "b2")
    )
    is_new = a1.shape[0] == a2.shape[1] == shape[1] and b1.shape[0] == shape[0]
    if not (is_new and a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]):
        a1, a2, b1, b2 = a2, a1, b2, b1
    added = b1 @ b2
    if "bm" in parts:
        added = np.einsum("mn...,im,nj->ij...", _wide(parts["bm"]), b1, b2)
    scale = 1.0 if module.alpha is None else module.alpha / a1.shape[1]
    turned = weight @ np.kron(a1 @ a2, np.eye(int(np.prod(shape[2:]))))
    return scale * (added.reshape(weight.shape) + turned)


def _adalora(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    parts = module.parts
    rank, alpha = parts["lora_E"].size, float(module.settings["lora_alpha"])
    down, up = _wide(parts["down"]).reshape(rank, -1), _wide(parts["up"]).reshape(shape[0], rank)
    middle = np.diag(_wide(parts["lora_E"]).ravel())
    return up @ middle @ down * (alpha if alpha > 0 else rank) / (rank + 1e-5)


def _vera(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    b, d, shared_a, shared_b = (
        _wide(module.parts[f"vera_{name}"]) for name in ("lambda_b", "lambda_d", "A", "B")
    )
    return np.diag(b) @ shared_b[: shape[0]] @ np.diag(d) @ shared_a[:, : shape[1]]


MULTIPLIED: Mapping[str, Callable[[StructuredModule, Shape, np.ndarray], Matrix]] = {
    "ia3": _ia3,
    "oft": _oft,
    "boft": _boft,
    "peft-oft": _peft_oft,
    "peft-boft": _peft_boft,
    "glora": _glora,
    "adalora": _adalora,
    "vera": _vera,
}
NEED_NO_WEIGHT = frozenset({"adalora", "vera"})
