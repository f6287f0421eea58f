"""Modules whose factors are made when they are asked for, and held one module at a time.

Factors of another algorithm's update may have ten times the numbers of its own tensors, so that
those of a whole file do not lie beside each other. What plans and reports ask for is known before.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import LoraModule, MadeFrom

Pair = tuple[np.ndarray, np.ndarray]


class LastMade:
    """The factors that were made last, for all modules of one file."""

    def __init__(self) -> None:
        self.held: tuple[object, Pair] | None = None

    def of(self, owner: object, make: Callable[[], Pair]) -> Pair:
        """The factors of an owner, made if those of another one were asked for since."""
        held = self.held  # another thread may put its own there meanwhile
        if held is None or held[0] is not owner:
            self.held = held = None  # those of two modules are not held at once
            self.held = held = owner, make()
        return held[1]


class Late(NamedTuple):
    """What is known of factors before they are made.

    Attributes:
        make: makes `down` and `up`, the same ones each time.
        shape: of the weight that they are for.
        rank: of the factors.
        norm: Frobenius norm of the update that they hold.
        slot: where they are kept until others are made.
    """

    make: Callable[[], Pair]
    shape: tuple[int, ...]
    rank: int
    norm: float
    slot: LastMade


class LateModule(LoraModule):
    """A module whose `down` and `up` are made when they are asked for.

    A changed copy (`dataclasses.replace`) has the factors themselves, as any other module.
    """

    late: Late | None = None

    @classmethod
    def of(cls, path: str, late: Late, made_from: MadeFrom) -> "LateModule":
        """A module of such factors; its scale is in them."""
        module = object.__new__(cls)
        fields = {"path": path, "alpha": None, "made_from": made_from, "late": late}
        for name, value in fields.items():
            object.__setattr__(module, name, value)
        return module

    def __getattr__(self, name: str) -> np.ndarray:
        late = self.late
        if late is None or name not in {"down", "up"}:
            raise AttributeError(name)
        down, up = late.slot.of(self, late.make)
        return down if name == "down" else up

    @property
    def rank(self) -> int:
        """As of any module; no factors are made for it."""
        return super().rank if self.late is None else self.late.rank

    @property
    def norm(self) -> float:
        """As of any module; no factors are made for it."""
        return super().norm if self.late is None else self.late.norm

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As of any module; no factors are made for it."""
        return super().weight_shape if self.late is None else self.late.shape

    @property
    def nbytes(self) -> int:
        """As of any module, once its factors are made."""
        if self.late is None:
            return super().nbytes
        out, *rest = self.late.shape
        return np.dtype(np.float32).itemsize * self.rank * (out + int(np.prod(rest)))
