"""What every open container of a base model's tensors can do."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class WeightFile(Protocol):
    """An open container whose tensors have torch keys and torch layout."""

    keys: tuple[str, ...]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def tensor(self, key: str) -> np.ndarray:
        """Read one tensor, in its stored dtype."""
        ...

    def require_weight(self, key: str) -> None:
        """Raise unless its dtype is one for weights, without reading it."""
        ...
