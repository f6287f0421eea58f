"""What the package has to know of an adapter algorithm other than plain LoRA: one record each.

An update is `LowRank` factors wherever it has them exactly; it is dense only where it is so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import StructuredModule

Parts = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class LowRank(NamedTuple):
    """An update as two factors, scale included.

    Attributes:
        up: `(out, rank)`, float64.
        down: `(rank, in * kh * kw)`, float64.
        singular: whether they are a singular form: columns and rows orthogonal, by size.
        total: squared norm of the whole update, where these are its first columns; None for all.
        even: whether each column has the norm of its row.
    """

    up: np.ndarray
    down: np.ndarray
    singular: bool = False
    total: float | None = None
    even: bool = False


class Spectrum(NamedTuple):
    """What is known of an update before it is made.

    Attributes:
        sigma: its singular values, descending, without those that are zero.
        started: for how many columns are wanted, what makes them of vectors that were found with
            the values and are held meanwhile; None where these have more numbers than the module's
            tensors, or were not looked for.
    """

    sigma: np.ndarray
    started: Callable[[int], Callable[[], LowRank] | None] = lambda _: None


class Misfit(NamedTuple):
    """Why the tensors of a module are not those of a layer: what was found, what was expected."""

    found: str
    expected: str


_VECTORS = frozenset(
    {"magnitude", "row_magnitude", "rescale", "ia3_l", "ia3_weight", "on_input", "boft_s"}
)
_VECTORS |= {"lora_E", "vera_lambda_b", "vera_lambda_d"}
"""Parts that are one number, or one for each row, column or rank; all others are matrices."""

Update = LowRank | np.ndarray
"""Factors, or a dense matrix `(out, in * kh * kw)` in float64; scale included."""


@dataclass(frozen=True)
class Algorithm:
    """One adapter algorithm.

    Attributes:
        name: as it is called in reports, `loha`.
        title: as it is called in sentences, `LoHa`.
        ends: part name by the end of a key; without a dot, of what is told in another way.
        needs: the sets of parts that are a whole module.
        misfit: what is wrong with the tensors for a weight of a shape; None when nothing is.
        update: of a module, for a weight of a shape; given the source's weight as a matrix in
            float64 where the algorithm needs it, and how many columns are wanted at most.
        rank: of the tensors: what alpha is divided by; 1 where nothing is.
        matrix_shape: `(out, in * kh * kw)` that the tensors say; None where they do not say it.
        bound: the largest rank that the update can have, for a layer of a shape; the full
            one by default.
        spectrum: of a module's update, given how many columns are wanted at most, and whether they
            will be; None where singular values cost as much as the factors.
        needs_weight: whether the update depends on the source's weight.
        zero_alpha_is_disputed: whether programs disagree on what an alpha of 0 means here, as they
            do for every alpha that a rank divides.
        added_to_bias: what a module adds to its layer's bias, given the weight's shape and the
            bias; None where it adds nothing.
        unusable: what a module lacks whatever its layer is, such as a setting; None when nothing.
    """

    name: str
    title: str
    ends: Mapping[str, str]
    needs: tuple[frozenset[str], ...]
    misfit: Callable[[StructuredModule, Shape], Misfit | None]
    update: Callable[[StructuredModule, Shape, np.ndarray | None, int | None], Update]
    rank: Callable[[Parts], int] = lambda _: 1
    matrix_shape: Callable[[Parts], tuple[int, int] | None] = lambda _: None
    bound: Callable[[Parts, tuple[int, int]], int] = lambda _, shape: min(shape)
    spectrum: Callable[[StructuredModule, int | None, bool], Spectrum] | None = None
    needs_weight: bool = False
    zero_alpha_is_disputed: bool = True
    added_to_bias: Callable[[StructuredModule, Shape, np.ndarray], np.ndarray | None] = lambda *_: (
        None
    )
    unusable: Callable[[StructuredModule], Misfit | None] = lambda _: None

    @property
    def least(self) -> list[frozenset[str]]:
        """Those of `needs` that have no part too much."""
        return [some for some in self.needs if not any(other < some for other in self.needs)]

    @property
    def parts(self) -> frozenset[str]:
        """Every part that it can have."""
        return frozenset(self.ends.values())

    def reads(self, names: frozenset[str]) -> bool:
        """Whether tensors of these parts are a whole module."""
        return names in self.needs


def lacks_axes(parts: Parts) -> bool:
    """Whether a part has no numbers, or is no matrix where anybody stores one."""
    flat = (a.ndim < 2 and name not in _VECTORS for name, a in parts.items())
    return any(flat) or any(0 in array.shape for array in parts.values())


def scale_of(module: StructuredModule, rank: int) -> float:
    """`alpha / rank`, or 1 without an alpha."""
    return 1.0 if module.alpha is None else module.alpha / rank


def double(array: np.ndarray) -> np.ndarray:
    """In float64."""
    return array.astype(np.float64)


def flat_in(shape: Shape) -> tuple[int, int]:
    """A weight's shape as that of its matrix."""
    out, *rest = shape
    return out, int(np.prod(rest))


def shapes_of(parts: Parts) -> str:
    """The tensors of a module and their shapes, for messages."""
    return ", ".join(f"{name} {array.shape}" for name, array in sorted(parts.items()))


def setting(module: StructuredModule, name: str, default: Any = None) -> Any:
    """A field of peft's configuration."""
    value = module.settings.get(name)
    return default if value is None else value
