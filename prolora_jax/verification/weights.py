"""A base model and an adapter's module, as far as a check needs them."""

from collections.abc import Iterator
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


def numbers_of(model: Weights, path: str, step: int) -> Iterator[np.ndarray]:
    """A weight's numbers, flat and row by row: of a model on disk no more than a piece is read.

    Args:
        model: base model.
        path: of the module.
        step: how many numbers a piece has; the last one may have fewer.

    Yields:
        The next numbers, which float32 holds.
    """
    read = getattr(model, "numbers", None)
    if read is not None:
        yield from read(path, step)
        return
    flat = model.matrix(path).reshape(-1)  # of a model in memory
    yield from (flat[first : first + step] for first in range(0, flat.size, step))


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
    """Norm of the update of a module, from its factors in float64; no matrix is made."""
    return abs(module.scale) * float(np.linalg.norm(_middle(*_columns(module))))


def update_values(module: LoraModule) -> np.ndarray:
    """Singular values of the update of a module, descending: its rank of them, the rest is zero."""
    return abs(module.scale) * np.linalg.svd(_middle(*_columns(module)), compute_uv=False)


def update_distance(a: LoraModule, b: LoraModule, factor: float) -> float:
    """Norm of `a`'s update minus `factor` times `b`'s, scales included; no matrix is made.

    With both pairs side by side the difference is one product of thin factors. Both become
    orthonormal columns times a small square (QR), and the product of the squares has its norm. Gram
    matrices would do as well, but they square what cancels: of equal updates 1e-8 would be left.
    """
    (up_a, down_a), (up_b, down_b) = _columns(a), _columns(b)
    up = np.concatenate([a.scale * up_a, -factor * b.scale * up_b], axis=1)
    return float(np.linalg.norm(_middle(up, np.concatenate([down_a, down_b], axis=1))))


def _columns(module: LoraModule) -> tuple[np.ndarray, np.ndarray]:
    """Both factors in float64 with a column for each rank, `(out, rank)` and `(in, rank)`."""
    down = module.down.reshape(module.rank, -1).astype(np.float64)
    return module.up.reshape(-1, module.rank).astype(np.float64), down.T


def _middle(up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """`up @ down.T` in the frames of both factors' columns: the same singular values."""
    (_, left), (_, right) = np.linalg.qr(up), np.linalg.qr(down)
    return left @ right.T


def shape_of(module: LoraModule) -> tuple[int, int]:
    """(out, in) of the weight that a module is for, as a matrix."""
    return module.up.shape[0], module.down.size // module.rank


def used_columns(module: LoraModule) -> int:
    """Rank without the zero columns that pad a file to one rank."""
    down, up = module.down.reshape(module.rank, -1), module.up.reshape(-1, module.rank)
    return int(np.count_nonzero(down.any(axis=1) & up.any(axis=0)))
