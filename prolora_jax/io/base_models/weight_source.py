"""Where one weight of a base model is, and how it is read from there: whole, or piece by piece."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from prolora_jax.architectures.placement import Placement
from prolora_jax.io.base_models.streamed_file import StreamedFile
from prolora_jax.layout import kernel_to_weight

_FINGERPRINT_LENGTH = 32


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


@dataclass(frozen=True)
class Source:
    """Where one weight is: an open file, and the place in it."""

    file: WeightFile
    placement: Placement

    def read(self) -> np.ndarray:
        """The weight in torch layout, in its stored dtype."""
        span = self._span
        if span is not None:
            return span.file.elements(span.key, span.first, span.end).reshape(span.shape)
        tensor = self.file.tensor(self.placement.key)
        if self.placement.rows is not None:
            tensor = tensor[slice(*self.placement.rows)]
        return kernel_to_weight(tensor) if self.placement.transposed else tensor

    def bias(self) -> np.ndarray | None:
        """The bias beside the weight, in its stored dtype; None where there is none."""
        before, found, _ = self.placement.key.rpartition("weight")
        key = f"{before}bias"
        if not found or key not in self.file.keys:
            return None
        tensor = self.file.tensor(key)
        return tensor if self.placement.rows is None else tensor[slice(*self.placement.rows)]

    def digest(self) -> str:
        """A hash of the weight's dtype, shape and bytes; of a streamed file in a small buffer."""
        span = self._span
        if span is None:
            weight = self.read()
            dtype, shape = weight.dtype, weight.shape
            # As bytes first: NumPy hands out no buffer of bfloat16.
            pieces = iter([np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data])
        else:
            dtype, shape = span.file.dtype(span.key), span.shape
            pieces = span.file.pieces(span.key, span.first, span.end)
        digest = hashlib.sha256(f"{dtype.name} {shape} ".encode())
        for piece in pieces:
            digest.update(piece)
        return digest.hexdigest()[:_FINGERPRINT_LENGTH]

    def numbers(self, step: int) -> Iterator[np.ndarray]:
        """The weight's numbers in their stored dtype, flat and row by row, `step` at a time.

        Args:
            step: how many; of a file that is not streamed the whole weight is held meanwhile.

        Yields:
            The next numbers; the last ones may be fewer.
        """
        span = self._span
        if span is None:
            flat = self.read().reshape(-1)
            for first in range(0, flat.size, step):
                yield flat[first : first + step]
            return
        for first in range(span.first, span.end, step):
            yield span.file.elements(span.key, first, min(first + step, span.end))

    @property
    def is_streamed(self) -> bool:
        """Whether the weight can be read in parts."""
        return self._span is not None

    @property
    def is_wide(self) -> bool:
        """Whether it is stored in float64, whose numbers float32 may not hold."""
        span = self._span
        return span is not None and span.file.dtype(span.key) == np.float64

    @property
    def place(self) -> str:
        """What tells this weight from others of its file."""
        where = self.placement
        return f"{where.key} {where.rows} {where.transposed}"

    @property
    def _span(self) -> "_Span | None":
        """Where the weight lies in one piece, in a file that is streamed."""
        file, where = self.file, self.placement
        if not isinstance(file, StreamedFile) or where.transposed:
            return None
        stored = file.shape(where.key)
        first, end = (0, stored[0]) if where.rows is None else where.rows
        row = math.prod(stored[1:])
        return _Span(file, where.key, (end - first, *stored[1:]), first * row, end * row)


class _Span(NamedTuple):
    """Numbers of a tensor in their order."""

    file: StreamedFile
    key: str
    shape: tuple[int, ...]
    first: int
    end: int
