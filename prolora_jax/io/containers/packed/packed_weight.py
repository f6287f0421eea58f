"""A packed weight as its packing presents it, and a packing as data.

A packing says which tensors of a module are its own, by the ends of their names and their dtypes.
Names, shapes and dtypes come from headers; of the tensors themselves only the small ones that say
how to read the others are read before a weight is asked for.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from prolora_jax.errors import BaseModelError, Refusal

FLOATS = {
    **{"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Dtypes of floats that weights are unpacked to, and of scales."""

AT_A_TIME = 2**20
"""Floats that are unpacked at a time, where a weight can be unpacked in parts."""

SMALL_TENSOR = 2**16
"""Bytes of a tensor that says how to read others; it is text, a few hundred bytes long."""


@runtime_checkable
class TensorStore(Protocol):
    """An open file that reads tensors in parts."""

    path: Path

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        ...

    def dtype(self, key: str) -> np.dtype:
        """Dtype of a tensor, from the header."""
        ...

    def elements(self, key: str, first: int, end: int) -> np.ndarray:
        """Some numbers of a tensor, flat and row by row."""
        ...

    def pieces(self, key: str, first: int, end: int) -> Iterator[memoryview]:
        """The bytes of some numbers of a tensor, a buffer at a time."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that belongs to a packed weight: where it is."""

    store: TensorStore
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as stored."""
        return self.store.shape(self.key)

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Its dtype as stored."""
        return self.store.dtype(self.key)

    def numbers(self, first: int, end: int) -> np.ndarray:
        """Some of its numbers, flat and row by row."""
        return self.store.elements(self.key, first, min(end, self.size))

    def read(self) -> np.ndarray:
        """The whole tensor."""
        return self.numbers(0, self.size).reshape(self.shape)

    def pieces(self) -> Iterator[memoryview]:
        """All its bytes, a buffer at a time."""
        return self.store.pieces(self.key, 0, self.size)


@dataclass(frozen=True)
class PackedWeight:
    """A weight that other tensors stand for.

    Attributes:
        packing: how, for people, with all that the bytes do not say: `nf4`, `fp8 by rows`.
        parts: the tensors that its floats are made of, by their role.
        shape: of the weight, `(out, in)`, or as a file of floats would have it.
        dtype: of the floats.
        unpack: its floats from one to another, flat and row by row; the first is a multiple of
            `step`, the last one is, too, or the last of all.
        step: what `unpack` can start at; None where it only gives the whole weight.
        is_linear: whether it is `(out, in)` even where a file of floats has `(in, out)`.
        is_plain: whether the floats themselves are stored, in another order at most.
        note: what is to be known of all weights of this packing, in a sentence.
    """

    packing: str
    parts: Mapping[str, StoredTensor]
    shape: tuple[int, ...]
    dtype: np.dtype
    unpack: Callable[[int, int], np.ndarray]
    step: int | None = None
    is_linear: bool = False
    is_plain: bool = False
    note: str | None = None

    @property
    def size(self) -> int:
        """How many floats it has."""
        return math.prod(self.shape)

    def numbers(self, first: int, end: int) -> np.ndarray:
        """Some of its floats, flat and row by row.

        Args:
            first: which one is the first.
            end: the one behind the last.
        """
        if self.step is None:
            return self.unpack(0, self.size)[first:end]
        # Some at a time: what unpacking needs beside its result is several times as large.
        stride = max(self.step, AT_A_TIME // self.step * self.step)
        found = np.empty(end - first, self.dtype)
        for start in range(first // self.step * self.step, end, stride):
            stop = min(start + stride, -(-end // self.step) * self.step, self.size)
            floats = self.unpack(start, stop)
            a, b = max(start, first), min(stop, end)
            found[a - first : b - first] = floats[a - start : b - start]
        return found


@dataclass(frozen=True)
class PackedModule:
    """What a file has of one module, before anything is known of its packing.

    Attributes:
        name: of the module, as the file has it.
        origin: the file, or the folder.
        parts: its tensors by the end of their names, `weight.absmax`.
        settings: what the folder's `config.json` says of quantisation; empty without one.
        metadata: header strings of the files that its tensors are in.
    """

    name: str
    origin: str
    parts: Mapping[str, StoredTensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def one_of(self, ends: Iterable[str]) -> StoredTensor | None:
        """Its first tensor with one of these ends."""
        return next((self.parts[end] for end in ends if end in self.parts), None)

    def said(self, end: str) -> Any:
        """What the JSON in one of its tensors says; None where it is none, or too long for any."""
        part = self.parts[end]
        if part.size * part.dtype.itemsize > SMALL_TENSOR:
            return None
        try:
            return json.loads(part.read().tobytes())
        except ValueError:
            return None

    def refusal(
        self, found: str, expected: str, remedy: str, code: Refusal = Refusal.UNREADABLE_BASE
    ) -> BaseModelError:
        """What is wrong with it, as an error."""
        return BaseModelError(
            f"{self.origin}: {self.name}: found {found}; expected {expected}; {remedy}", code=code
        )

    def need(self, right: bool, found: str, expected: str) -> None:
        """Raise unless tensors fit each other.

        Raises:
            BaseModelError: they do not.
        """
        if not right:
            raise self.refusal(found, expected, REMEDY)


REMEDY = "fetch the model again, or give one whose weights are not packed"


@dataclass(frozen=True)
class Packing:
    """How to tell a packing, by the ends of a module's tensors.

    Attributes:
        name: of the packing, for people.
        marks: ends of which one tells it. Where `dtypes` are given, the numbers have one of them.
        numbers: the end of the tensor that holds the numbers.
        dtypes: names of their dtypes; any if empty.
        needs: ends of what else must be there; any one of each group.
        open: the weight, from the module's tensors.
        may: ends that belong to it and are not read.
    """

    name: str
    marks: tuple[str, ...]
    numbers: str
    dtypes: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]
    open: Callable[[PackedModule], PackedWeight]
    may: tuple[str, ...] = ()

    @property
    def ends(self) -> frozenset[str]:
        """All ends that belong to it."""
        needed = (end for group in self.needs for end in group)
        return frozenset({*self.marks, self.numbers, *needed, *self.may})
