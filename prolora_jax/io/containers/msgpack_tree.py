"""Flax's msgpack files, read one array at a time.

Flax itself reads such a file whole, which for SDXL is 10 GB. The format is simple enough to walk
from header to header: maps of names, and arrays as one blob each. Bytes of an array are read when
it is asked for. Nothing here runs code or allocates what a header claims before it was checked
against the file's length.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (imported for its effect: NumPy cannot name bfloat16 without it)
import numpy as np

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.msgpack_values import (
    FIXED_EXTENSION,
    MOST_VALUES,
    OTHER,
    SIZED,
    UNSIGNED,
    TooManyValues,
)
from prolora_jax.io.guarded import open_regular

_NDARRAY = 1  # Flax's extension type
_CHUNKED = "__msgpack_chunked_array__"  # arrays above 1 GB are cut into flat pieces
_DEEPEST = 64
_LONGEST_TEXT = 2**20


@dataclass(frozen=True)
class Leaf:
    """An array in the file: shape, dtype, and where its bytes are, in one piece or several."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, int], ...]


class MsgpackTree:
    """The arrays of a Flax msgpack file.

    Attributes:
        path: the file.
        leaves: arrays by their place in the tree.
    """

    def __init__(self, path: Path):
        """Walk a file's headers.

        Args:
            path: a file that `flax.serialization.to_bytes` wrote.

        Raises:
            BaseModelError: it is cut off, or no such file.
        """
        self.path = path
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise self._bad("found an empty file", Refusal.TRUNCATED)
                self._bytes = np.memmap(file, np.uint8, mode="r")
        except OSError as failure:
            raise self._bad(f"cannot be read: {failure.strerror}") from failure
        self._at, self._values = 0, 0
        try:
            tree = self._value(0)
        except TooManyValues as failure:
            raise self._bad(f"found {failure}") from None
        if not isinstance(tree, dict) or self._at != len(self._bytes):
            raise self._bad("found no tree of named arrays")
        self.leaves: dict[tuple[str, ...], Leaf] = {}
        self._collect(tree, ())

    def read(self, place: tuple[str, ...]) -> np.ndarray:
        """One array, in its stored dtype."""
        leaf = self.leaves[place]
        raw = np.concatenate([self._bytes[start:end] for start, end in leaf.pieces])
        return raw.view(np.dtype(leaf.dtype)).reshape(leaf.shape)

    def _collect(self, node: dict[str, Any], place: tuple[str, ...]) -> None:
        if _CHUNKED in node:
            self.leaves[place] = self._joined(node)
            return
        for name, value in node.items():
            if isinstance(value, dict):
                self._collect(value, (*place, name))
            elif isinstance(value, Leaf):
                self.leaves[*place, name] = value

    def _joined(self, node: dict[str, Any]) -> Leaf:
        """An array above 1 GB: `{"shape": {"0": ...}, "chunks": {"0": array, ...}}`."""
        match node.get("shape"), node.get("chunks"):
            case dict(sizes), dict(chunks):
                shape = [size for _, size in _in_order(sizes) if isinstance(size, int)]
                leaves = [leaf for _, leaf in _in_order(chunks) if isinstance(leaf, Leaf)]
                if len({leaf.dtype for leaf in leaves}) == 1:
                    pieces = tuple(piece for leaf in leaves for piece in leaf.pieces)
                    return self._checked(Leaf(tuple(shape), leaves[0].dtype, pieces))
        raise self._bad("found an array in pieces, some of them missing")

    def _value(self, depth: int) -> Any:
        """The value at the current byte: arrays as leaves, bytes as (start, end), else as it is.

        What no Flax tree needs (floats, booleans, other extensions) is walked over: None.

        Raises:
            TooManyValues: there are more than in any tree, or a header claims it.
        """
        self._values += 1
        if depth > _DEEPEST:
            raise self._bad("found no tree of named arrays")
        kind, size = self._header()
        if kind in {"list", "map"}:
            self._require(self._at + min(size, 1))
            if self._values + size > MOST_VALUES:
                raise TooManyValues
        if kind == "number":
            return size
        if kind == "map":
            pairs = [(self._value(depth + 1), self._value(depth + 1)) for _ in range(size)]
            return {key: value for key, value in pairs if isinstance(key, str)}
        if kind == "list":
            return [self._value(depth + 1) for _ in range(size)]
        if kind == "extension":
            code = self._number(1)
            end = self._at + size
            self._require(end)
            leaf = self._array(depth) if code == _NDARRAY else None
            self._at = end
            return leaf
        start = self._at
        self._require(start + size)
        self._at += size
        if kind == "text":
            if size > _LONGEST_TEXT:
                raise self._bad(f"found a text of {size} bytes")
            return bytes(self._bytes[start : self._at]).decode(errors="replace")
        return (start, self._at) if kind == "bytes" else None

    def _header(self) -> tuple[str, int]:
        """Kind and size of the next value, of a number its value; the bytes are passed."""
        first = self._number(1)
        if first < 0x80:
            return "number", first
        for below, start, kind in ((0x90, 0x80, "map"), (0xA0, 0x90, "list"), (0xC0, 0xA0, "text")):
            if first < below:
                return kind, first - start
        if first in SIZED:
            kind, width = SIZED[first]
            return kind, self._number(width)
        if first in UNSIGNED:
            return "number", self._number(UNSIGNED[first])
        if first in FIXED_EXTENSION:
            return "extension", FIXED_EXTENSION[first]
        return "other", OTHER.get(first, 0)

    def _number(self, width: int) -> int:
        self._require(self._at + width)
        self._at += width
        return int.from_bytes(self._bytes[self._at - width : self._at].tobytes())

    def _array(self, depth: int) -> Leaf:
        """What an extension holds: shape, name of the dtype, bytes."""
        match self._value(depth + 1):
            case [[*shape], str(dtype), (int(start), int(end))]:
                if all(isinstance(size, int) for size in shape):
                    return self._checked(Leaf(tuple(shape), dtype, ((start, end),)))
        raise self._bad("found an array without shape, dtype or bytes")

    def _checked(self, leaf: Leaf) -> Leaf:
        try:
            itemsize = np.dtype(leaf.dtype).itemsize
        except TypeError:
            raise self._bad(f"found an array of dtype {leaf.dtype}") from None
        if sum(end - start for start, end in leaf.pieces) != math.prod(leaf.shape) * itemsize:
            raise self._bad(f"found an array whose bytes are not those of shape {leaf.shape}")
        return leaf

    def _require(self, end: int) -> None:
        if end > len(self._bytes):
            raise self._bad(f"found {len(self._bytes)} bytes of at least {end}", Refusal.TRUNCATED)

    def _bad(self, found: str, code: Refusal = Refusal.UNREADABLE_BASE) -> BaseModelError:
        return BaseModelError(
            f"{self.path}: {found} (expected a Flax msgpack file); fetch it again", code=code
        )


def _in_order(numbered: dict[str, Any]) -> list[tuple[int, Any]]:
    """Items of a map whose names are numbers, as Flax writes lists."""
    return sorted(
        ((int(name), value) for name, value in numbered.items() if name.isdecimal()),
        key=lambda item: item[0],
    )
