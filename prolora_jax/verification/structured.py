"""Factors that were made of another algorithm's update, against that update, dense.

The formulas stand here a second time, written from formats.md 2.1 and 2.2 without a factor: what is
checked is not believed. Nothing of `adapters.algorithms` is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.adapters.adapter import Adapter, LoraModule, StructuredModule
from prolora_jax.verification.multiplied import MULTIPLIED, NEED_NO_WEIGHT
from prolora_jax.verification.weights import dense_update

Matrix = Float[np.ndarray, "out in"]
Shape = tuple[int, ...]
Parts = Mapping[str, np.ndarray]
Weight = Callable[[str], np.ndarray]

TOLERANCE = 2e-6
"""Factors are float32: shares of the update's squared norm may be off by this."""


def factor_problems(
    given: Adapter,
    made: Adapter,
    shapes: Mapping[str, Shape],
    weight: Weight,
    energy: float,
    most: int | None,
    keep_dora: bool = False,
) -> dict[str, list[str]]:
    """What is wrong with factors that were made of other algorithms' updates.

    Args:
        given: the adapter as the file has it, resolved against its base model.
        made: the same with LoRA factors alone.
        shapes: of the base model's weights.
        weight: the base model's weights as matrices.
        energy: share of the squared norm that factors should hold, where `most` allows.
        most: the most columns that they may have.
        keep_dora: whether the factors of DoRA are of what it adds before norms are set.

    Returns:
        Problems by module.
    """
    factors = {module.path: module for module in made.modules}
    found = {}
    for module in given.structured:
        shape = shapes.get(module.path)
        own = factors.get(module.path)
        if own is None or own.made_from is None:
            found[module.path] = ["no factors were made of it"]
            continue
        shape = shape or (own.up.shape[0], *own.down.shape[1:])
        bare = keep_dora and module.algorithm == "dora"
        update = bare_update(module, shape) if bare else _update(module, shape, weight)
        # A pair that was in the file is not cut.
        in_file = bare and "up" in module.parts and "mid" not in module.parts
        limit = None if in_file else most
        problems = _problems(update, own, energy, limit)
        if problems:
            found[module.path] = problems
    return found


def _update(module: StructuredModule, shape: Shape, weight: Weight) -> Matrix:
    needed = module.algorithm in NEED_WEIGHT
    return DENSE[module.algorithm](
        module, shape, weight(module.path).astype(np.float64) if needed else np.zeros(())
    )


def _problems(update: Matrix, own: LoraModule, energy: float, most: int | None) -> list[str]:
    assert own.made_from is not None  # `factor_problems`
    size, kept = float(np.linalg.norm(update)), own.made_from.kept
    held = dense_update(own)
    square = float(np.sum(held**2))
    if size == 0.0:
        return [] if square == 0.0 else ["has factors, and its update is zero"]
    problems = []
    # The best factors are a projection: what they miss is orthogonal to what they hold.
    apart = abs(float(np.sum(held * update)) - square) / size**2
    if not apart <= TOLERANCE or abs(square / size**2 - kept) > TOLERANCE:
        missed = float(np.linalg.norm(held - update)) / size
        tail = max(1.0 - kept, 0.0) ** 0.5
        problems.append(f"its factors miss {missed:.3g} of its update, {tail:.3g} was said")
    if kept < 1.0:
        sigma = np.square(np.linalg.svd(update, compute_uv=False))
        best = float(sigma[: own.rank].sum() / sigma.sum())
        if abs(best - kept) > TOLERANCE:
            problems.append(f"its factors hold {kept:.6f} of its square, {best:.6f} can be held")
        if own.rank != most and kept < energy - TOLERANCE:
            problems.append(f"its factors hold {kept:.6f} of its square, asked for was {energy}")
    if most is not None and own.rank > most:
        problems.append(f"its factors have rank {own.rank}, at most {most} was asked for")
    return problems


def _scale(module: StructuredModule, rank: int) -> float:
    return 1.0 if module.alpha is None else module.alpha / rank


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _loha(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    parts, product = module.parts, np.ones((shape[0], int(np.prod(shape[1:]))))
    for number in "12":
        a, b = _wide(parts[f"hada_w{number}_a"]), _wide(parts[f"hada_w{number}_b"])
        core = parts.get(f"hada_t{number}")
        if core is None:
            half = a @ b.reshape(b.shape[0], -1)
        else:
            half = np.einsum("ijkl,ip,jr->prkl", _wide(core), a, b, optimize=True)
        product = product * half.reshape(product.shape)
    return _scale(module, parts["hada_w1_b"].shape[0]) * product


def _lokr(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    parts = {name.removeprefix("lokr_"): _wide(array) for name, array in module.parts.items()}
    first = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    rank = parts["w2_b"].shape[0] if "w2_b" in parts else first.shape[0]
    if "w2" in parts:
        second, rank = parts["w2"], parts["w1_b"].shape[0] if "w1_b" in parts else 1
    elif "t2" in parts:
        second = np.einsum(
            "ijkl,ip,jr->prkl", parts["t2"], parts["w2_a"], parts["w2_b"], optimize=True
        )
    else:
        second = parts["w2_a"] @ parts["w2_b"].reshape(rank, -1)
    first = first.reshape(first.shape[0], first.shape[1], 1)
    second = second.reshape(second.shape[0], shape[1] // first.shape[1], -1)
    product = np.einsum("abz,cdk->acbdk", first, second)
    # Of peft alone full ones are scaled; alpha is then by the rank of its configuration.
    unscaled = {"w1", "w2"} <= parts.keys() and not module.settings
    scale = 1.0 if unscaled else _scale(module, rank)
    return scale * product.reshape(shape[0], -1)


def _tucker(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    up, down, mid = (_wide(module.parts[name]) for name in ("up", "down", "mid"))
    update = np.einsum("mnkl,im,nj->ijkl", mid, up[:, :, 0, 0], down[:, :, 0, 0], optimize=True)
    return _scale(module, down.shape[0]) * update.reshape(shape[0], -1)


def _full(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    return _wide(module.parts["diff"]).reshape(shape[0], -1)


def _pair(module: StructuredModule, shape: Shape, _: np.ndarray) -> Matrix:
    rank = module.parts["down"].shape[0]
    up, down = (_wide(module.parts[name]) for name in ("up", "down"))
    return _scale(module, rank) * (up.reshape(shape[0], rank) @ down.reshape(rank, -1))


def bare_update(module: StructuredModule, shape: Shape) -> Matrix:
    """What a module of DoRA adds to the weight before norms are set.

    Args:
        module: it.
        shape: of the weight.
    """
    inner = {name: a for name, a in module.parts.items() if not name.endswith("magnitude")}
    added = next(formula for name, formula in _ADDED.items() if name in inner)
    return added(replace(module, parts=inner), shape, np.zeros(()))


class Magnitude(NamedTuple):
    """A magnitude, and what it is of.

    Attributes:
        values: one number each, float64.
        over: axes of `(out, in, window)` that a norm is taken over.
    """

    values: np.ndarray
    over: tuple[int, int]

    def norms(self, whole: np.ndarray, shape: Shape) -> np.ndarray:
        """The same of a matrix: what the magnitude would be if it changed nothing."""
        return np.sqrt(np.sum(whole.reshape(shape[0], shape[1], -1) ** 2, axis=self.over))


def magnitude_of(module: StructuredModule, shape: Shape) -> Magnitude:
    """The magnitude of a module of DoRA.

    Args:
        module: it.
        shape: of the weight.
    """
    by_peft = "row_magnitude" in module.parts
    found = _wide(module.parts["row_magnitude" if by_peft else "magnitude"])
    rows = found.ndim == 1 or found.shape[0] == found.size
    # peft knows rows alone, but for the numbers of a linear layer that say another thing.
    rows = rows or found.shape[1] != shape[1] or (by_peft and found.ndim == 4)
    return Magnitude(found.reshape(-1), (1, 2) if rows else (0, 2))


def _dora(module: StructuredModule, shape: Shape, weight: np.ndarray) -> Matrix:
    magnitude, whole = magnitude_of(module, shape), weight + bare_update(module, shape)
    sizes, ratio = magnitude.norms(whole, shape), np.zeros_like(magnitude.values)
    ratio[sizes > 0] = magnitude.values[sizes > 0] / sizes[sizes > 0]
    window = whole.reshape(shape[0], shape[1], -1)
    return (window * np.expand_dims(ratio, magnitude.over)).reshape(weight.shape) - weight


Formula = Callable[[StructuredModule, Shape, np.ndarray], Matrix]
_ADDED: Mapping[str, Formula] = {
    "mid": _tucker,
    "up": _pair,
    "hada_w1_a": _loha,
    "lokr_w1": _lokr,
    "lokr_w1_a": _lokr,
}
"""What DoRA adds before it sets norms, by a part that only one of them has."""

DENSE: Mapping[str, Formula] = {
    "dora": _dora,
    "full": _full,
    "locon-tucker": _tucker,
    "loha": _loha,
    "lokr": _lokr,
    **MULTIPLIED,
}
"""The update of a module by algorithm, dense, in float64: of a weight's shape and the weight."""

NEED_WEIGHT = frozenset({"dora"}) | (MULTIPLIED.keys() - NEED_NO_WEIGHT)
