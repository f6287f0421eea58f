"""A base model and an adapter's module, as far as a check needs them: dense matrices."""

from typing import Protocol, runtime_checkable

import numpy as np

from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import BaseModelError, Refusal


@runtime_checkable
class Weights(Protocol):
    """A base model, as far as it is needed here."""

    @property
    def spec(self) -> BaseModelSpec:
        """Its modules."""
        ...

    def matrix(self, path: str) -> np.ndarray:
        """The weight of a module as a float32 matrix `(out, in * kh * kw)`."""
        ...

    def weight(self, path: str) -> np.ndarray:
        """The weight of a module in its stored dtype and shape."""
        ...

    def fingerprint(self, path: str) -> str:
        """What identifies a weight: hex digits that depend on its dtype, shape and bytes."""
        ...


def finite_matrix(model: Weights, path: str) -> np.ndarray:
    """The weight of a module as a float32 matrix, all of whose numbers are finite.

    Raises:
        BaseModelError: it has others, which no decomposition takes.
    """
    matrix = model.matrix(path)
    if not np.isfinite(matrix).all():
        place = getattr(model, "location", model.spec.name)  # models in memory have none
        raise BaseModelError(
            f"{place}: {path}: found NaN or infinite numbers; expected a finite weight. Use "
            "another copy of this base model.",
            code=Refusal.NON_FINITE,
        )
    return matrix


def identical(source: Weights, target: Weights, source_path: str, path: str) -> bool:
    """Whether two weights are equal, after a cast of the wider one to the narrower dtype."""
    if source.fingerprint(source_path) == target.fingerprint(path):
        return True
    a, b = source.weight(source_path), target.weight(path)
    if a.dtype == b.dtype:
        return False
    narrow = a.dtype if a.dtype.itemsize <= b.dtype.itemsize else b.dtype
    with np.errstate(over="ignore"):
        return bool(np.array_equal(a.astype(narrow), b.astype(narrow)))


def is_packed(model: Weights, path: str) -> bool:
    """Whether a weight has 8 bits or fewer; those of models in memory have more."""
    packing = getattr(model, "packing", None)
    return packing is not None and packing(path) is not None


def dense_update(module: LoraModule) -> np.ndarray:
    """The update of a module as a dense matrix, float64, scale included."""
    down = module.down.reshape(module.rank, -1).astype(np.float64)
    return module.scale * (module.up.reshape(-1, module.rank).astype(np.float64) @ down)


def update_norm(module: LoraModule) -> float:
    """Norm of the update of a module, from Gram matrices of its factors in float64."""
    down = module.down.reshape(module.rank, -1).astype(np.float64)
    up = module.up.reshape(-1, module.rank).astype(np.float64)
    square = float(np.sum((up.T @ up) * (down @ down.T)))
    return abs(module.scale) * float(np.sqrt(np.maximum(square, 0.0)))


def update_values(module: LoraModule) -> np.ndarray:
    """Singular values of the update of a module, descending: its rank of them, the rest is zero."""
    down = module.down.reshape(module.rank, -1).astype(np.float64)
    up = module.up.reshape(-1, module.rank).astype(np.float64)
    (_, left), (_, right) = np.linalg.qr(up), np.linalg.qr(down.T)
    middle = left @ right.T
    return abs(module.scale) * np.linalg.svd(middle, compute_uv=False)


def shape_of(module: LoraModule) -> tuple[int, int]:
    """(out, in) of the weight that a module is for, as a matrix."""
    return module.up.shape[0], module.down.size // module.rank


def used_columns(module: LoraModule) -> int:
    """Rank without the zero columns that pad a file to one rank."""
    down, up = module.down.reshape(module.rank, -1), module.up.reshape(-1, module.rank)
    return int(np.count_nonzero(down.any(axis=1) & up.any(axis=0)))
