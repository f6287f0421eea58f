"""Where one weight of a base model is, and how it is read from there: whole, or piece by piece."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from prolora_jax.architectures.placement import Placement
from prolora_jax.io.base_models.packed_weights import PackedWeights
from prolora_jax.io.base_models.streamed_file import PIECE_BYTES, StreamedFile
from prolora_jax.io.base_models.weight_file import WeightFile
from prolora_jax.io.containers.packed.fp8 import UNSCALED, lost
from prolora_jax.io.containers.packed.packed_weight import PackedWeight
from prolora_jax.io.containers.packed.scaled import FLOAT8
from prolora_jax.io.file_state import FileState
from prolora_jax.layout import kernel_to_weight

_FINGERPRINT_LENGTH = 32


@dataclass(frozen=True)
class Source:
    """Where one weight is: an open file, and the place in it."""

    file: WeightFile
    placement: Placement

    def read(self) -> np.ndarray:
        """The weight in torch layout, in its stored dtype."""
        span = self._span
        if span is not None:
            return span.elements(0, span.size).reshape(span.shape)
        where = self.placement
        tensor = self.file.tensor(where.key) if where.expert is None else self._expert(where.expert)
        return self._rows_of(kernel_to_weight(tensor) if where.transposed else tensor)

    def rows(self, first: int, end: int) -> np.ndarray:
        """Some rows of `read()`; of a weight that is not streamed all are read."""
        span = self._span
        if span is None:
            return self.read()[first:end]
        row = math.prod(span.shape[1:])
        return span.elements(first * row, end * row).reshape(end - first, *span.shape[1:])

    def _expert(self, number: int) -> np.ndarray:
        """One matrix of a tensor that has one for each expert, as stored."""
        file, key = self.file, self.placement.key
        if not isinstance(file, StreamedFile | PackedWeights):
            return file.tensor(key)[number]
        _, *sides = file.shape(key)
        size = math.prod(sides)
        return file.elements(key, number * size, (number + 1) * size).reshape(sides)

    def bias(self) -> np.ndarray | None:
        """The bias beside the weight, in its stored dtype; None where there is none."""
        where = self.placement
        before, found, _ = where.key.rpartition("weight")
        key = f"{before}bias" if where.expert is None else f"{where.key}_bias"
        if (where.expert is None and not found) or key not in self.file.keys:
            return None
        tensor = self.file.tensor(key)
        return self._rows_of(tensor if where.expert is None else tensor[where.expert])

    def _rows_of(self, tensor: np.ndarray) -> np.ndarray:
        """The rows that are this module's, in their order."""
        segments, step = self.placement.segments, self.placement.step
        if segments is None:
            return tensor
        parts = [tensor[first:end:step] for first, end in segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def digest(self) -> str:
        """A hash of the weight's dtype, shape and bytes; of a streamed file in a small buffer.

        Of a packed weight it is the bytes of all that it is made of: weights that were packed in
        two ways are two, even where their floats are equal, and none is one that is not packed.
        """
        packed, span = self.packed, self._span
        packed = None if packed is not None and packed.is_plain else packed
        whole = self.placement.expert is None
        if isinstance(self.file, PackedWeights) and packed is not None and whole:
            head = f"packed {packed.dtype.name} {packed.shape} {self.placement.segments} "
            pieces = self.file.pieces(self.placement.key)
        elif span is None or not isinstance(span.file, StreamedFile):
            weight = self.read()  # an expert's floats: its bytes are not in one piece
            head = f"{weight.dtype.name} {weight.shape} "
            head = head if packed is None else f"packed {packed.packing} {head}"
            # As bytes first: NumPy hands out no buffer of bfloat16.
            pieces = iter([np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data])
        else:
            head = f"{span.file.dtype(span.key).name} {span.shape} "
            runs = (span.file.pieces(span.key, *run) for run in span.runs)
            pieces = chain.from_iterable(runs)
        digest = hashlib.sha256(head.encode())
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
        for first in range(0, span.size, step):
            yield span.elements(first, min(first + step, span.size))

    def lost(self) -> float | None:
        """Share of the numbers that a cast to 8 bits without a scale has made zero or subnormal.

        None of any other weight. The weight is read.
        """
        if self.packing != UNSCALED:
            return None
        found, size = 0, 0
        for part in self.numbers(PIECE_BYTES):
            found, size = found + lost(part), size + part.size
        return found / max(1, size)

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
    def packed(self) -> PackedWeight | None:
        """How the weight is packed; None where its numbers stand for themselves."""
        if not isinstance(self.file, PackedWeights):
            return None
        return self.file.weight(self.placement.key)

    @property
    def packing(self) -> str | None:
        """The packing's name; None where the numbers stand for themselves in 16 bits or more."""
        if isinstance(self.file, StreamedFile):
            is_cast = self.file.dtype(self.placement.key).name in FLOAT8
            return UNSCALED if is_cast else None
        packed = self.packed
        return None if packed is None or packed.is_plain else packed.packing

    @property
    def state(self) -> FileState | None:
        """The state of the one file that all of the weight is in; None where there is none such."""
        if isinstance(self.file, PackedWeights):
            return self.file.state(self.placement.key)
        return self.file.state if isinstance(self.file, StreamedFile) else None

    @property
    def place(self) -> str:
        """What tells this weight from others of its file."""
        where, packed = self.placement, self.packed
        how = "" if packed is None else f"{packed.packing}: "
        which = "" if where.expert is None else f" {where.expert} {where.step}"
        return f"{how}{where.key} {where.segments} {where.transposed}{which}"

    @property
    def _span(self) -> "_Span | None":
        """Where the weight's numbers lie, row by row, in a file that is streamed."""
        file, where = self.file, self.placement
        if not isinstance(file, StreamedFile | PackedWeights) or where.transposed:
            return None
        if where.step > 1 or (isinstance(file, PackedWeights) and not file.in_parts(where.key)):
            return None
        stored = file.shape(where.key)
        before, stored = (0, stored) if where.expert is None else (where.expert, stored[1:])
        segments = ((0, stored[0]),) if where.segments is None else where.segments
        row, before = math.prod(stored[1:]), before * math.prod(stored)
        runs = tuple((before + first * row, before + end * row) for first, end in segments)
        rows = sum(end - first for first, end in segments)
        return _Span(file, where.key, (rows, *stored[1:]), runs)


@dataclass(frozen=True)
class JoinedSource:
    """Where a weight is whose rows are those of several others, one after another."""

    parts: tuple[Source, ...]

    def read(self) -> np.ndarray:
        """The weight in torch layout, in its parts' dtype; float32 where they have several."""
        found = [part.read() for part in self.parts]
        if len({part.dtype for part in found}) > 1:
            found = [part.astype(np.float32) for part in found]
        return np.concatenate(found)

    def rows(self, first: int, end: int) -> np.ndarray:
        """Some rows of `read()`, which is read whole."""
        return self.read()[first:end]

    def bias(self) -> np.ndarray | None:
        """The biases of all parts; None where one has none."""
        found = [part.bias() for part in self.parts]
        known = [bias for bias in found if bias is not None]
        return np.concatenate(known) if len(known) == len(found) else None

    def digest(self) -> str:
        """A hash as `Source.digest` has it: of a weight that is not packed, that of one tensor."""
        if self.packing is None:
            weight = self.read()
            digest = hashlib.sha256(f"{weight.dtype.name} {weight.shape} ".encode())
            digest.update(np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data)
        else:
            digest = hashlib.sha256(" ".join(part.digest() for part in self.parts).encode())
        return digest.hexdigest()[:_FINGERPRINT_LENGTH]

    def numbers(self, step: int) -> Iterator[np.ndarray]:
        """As `Source.numbers`; the whole weight is held meanwhile."""
        flat = self.read().reshape(-1)
        yield from (flat[first : first + step] for first in range(0, flat.size, step))

    def lost(self) -> float | None:
        """The largest of the parts' shares; see `Source.lost`."""
        found = [share for part in self.parts if (share := part.lost()) is not None]
        return max(found, default=None)

    is_streamed = False

    @property
    def is_wide(self) -> bool:
        """Whether a part is stored in float64."""
        return any(part.is_wide for part in self.parts)

    @property
    def packing(self) -> str | None:
        """The packings' names; None where no part is packed."""
        return ", ".join(sorted({p for part in self.parts if (p := part.packing)})) or None

    @property
    def state(self) -> FileState | None:
        """The state of the one file that all parts are in; None where there is none such."""
        states = {part.state for part in self.parts}
        return states.pop() if len(states) == 1 else None

    @property
    def place(self) -> str:
        """What tells this weight from others of its file."""
        return " + ".join(part.place for part in self.parts)


class _Span(NamedTuple):
    """Numbers of a tensor, in one run or in several that follow one another."""

    file: StreamedFile | PackedWeights
    key: str
    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return math.prod(self.shape)

    def elements(self, first: int, end: int) -> np.ndarray:
        """Some of them, flat; counted from the first number of the first run."""
        found, before = [], 0
        for start, stop in self.runs:
            size = stop - start
            here = max(0, first - before), min(size, end - before)
            if here[0] < here[1]:
                found.append(self.file.elements(self.key, start + here[0], start + here[1]))
            before += size
        return found[0] if len(found) == 1 else np.concatenate(found)
