"""The header of a GGUF file: its values, and which tensors are where.

A header of a large vocabulary has half a million strings: those are passed over, not built, unless
somebody asks for them by name. Limits stand before anything believes what the file says.
"""

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.guarded import open_regular

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LARGEST_COUNT = 100_000
_LONGEST_NAME = 512
_LONGEST_TEXT = 2**16
_KEPT_NUMBERS = 4096
_LONGEST_LIST = 2**21
_MOST_AXES = 4
_LARGEST_ALIGNMENT = 2**16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"} | {
    **{10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """What a header says of one tensor.

    Attributes:
        shape: as torch has it, rows first; the file lists it reversed.
        kind: number of its type.
        start: its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GgufHeader:
    """A header.

    Attributes:
        values: by name; strings, numbers, short lists of numbers and lists that were asked for.
            Others are None.
        tensors: by name.
    """

    values: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """A place in a header that moves on."""

    def __init__(self, path: Path, file: BufferedReader):
        self.path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        """The next bytes."""
        found = self._file.read(count) if count <= self.left else b""
        if len(found) < count:
            raise self.bad(f"found {self._size} bytes of more", Refusal.TRUNCATED)
        return found

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return self._size - self._file.tell()

    @property
    def at(self) -> int:
        """The place of the next byte."""
        return self._file.tell()

    def number(self, code: str) -> Any:
        """The next number, of a code of `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self, longest: int) -> str | None:
        """The next string; None where it is longer."""
        length = self.number("Q")
        if length > longest:
            self.skip(length)
            return None
        return self.take(length).decode(errors="replace")

    def name(self) -> str:
        """The next string, which names something."""
        found = self.text(_LONGEST_NAME)
        if found is None or not found.isprintable():
            raise self.bad("found a name that is too long, or cannot be printed")
        return found

    def count(self) -> int:
        """The next number of things."""
        found = self.number("Q")
        if found > _LARGEST_COUNT:
            raise self.bad(f"found a count of {found}; at most {_LARGEST_COUNT} are read")
        return found

    def skip(self, count: int) -> None:
        """Pass bytes."""
        if count > self.left:
            raise self.bad(f"found {self._size} bytes of more", Refusal.TRUNCATED)
        self._file.seek(count, os.SEEK_CUR)

    def value(self, kind: int, *, whole: bool = False) -> Any:
        """The next value; None of what is long, but of a list that is wanted whole."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(_LONGEST_TEXT)
        if kind != _ARRAY:
            raise self.bad(f"found a value of kind {kind}")
        inner, length = self.number("I"), self.number("Q")
        if whole and length > _LONGEST_LIST:
            raise self.bad(f"found a list of {length}; at most {_LONGEST_LIST} are read")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            size = struct.calcsize(f"<{code}") * length
            if whole or length <= _KEPT_NUMBERS:
                return [*struct.unpack(f"<{length}{code}", self.take(size))]
            self.skip(size)
            return None
        if inner != _STRING:
            raise self.bad(f"found a list of kind {inner}")
        if whole:
            return [self.string() for _ in range(length)]
        for _ in range(length):
            self.skip(self.number("Q"))
        return None

    def string(self) -> str:
        """The next string of a list; bytes that are no text stay apart from each other."""
        length = self.number("Q")
        if length > _LONGEST_TEXT:
            raise self.bad(f"found a string of {length} bytes; at most {_LONGEST_TEXT} are read")
        return self.take(length).decode(errors="surrogateescape")

    def bad(self, found: str, code: Refusal = Refusal.UNREADABLE_BASE) -> BaseModelError:
        """What is wrong, as an error."""
        return BaseModelError(
            f"{self.path}: {found} (expected a GGUF file); fetch it again", code=code
        )


def read_gguf_header(path: Path, whole: Collection[str] = ()) -> GgufHeader:
    """Read the header of a GGUF file.

    Args:
        path: a file.
        whole: names of lists that are read however long they are.

    Returns:
        The header; where tensors end is not looked at.

    Raises:
        BaseModelError: it is none, is over a limit, or has a name twice.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        cursor = _Cursor(path, file)
        if cursor.take(4) != MAGIC:
            raise cursor.bad("found another kind of file")
        version = cursor.number("I")
        if version not in _VERSIONS:
            raise cursor.bad(f"found version {version}, or another order of bytes")
        tensor_count, value_count = cursor.count(), cursor.count()
        values: dict[str, Any] = {}
        for _ in range(value_count):
            name = cursor.name()
            if name in values:
                raise cursor.bad(f"found {name} twice", Refusal.DUPLICATE_KEY)
            values[name] = cursor.value(cursor.number("I"), whole=name in whole)
        found: dict[str, GgufTensor] = {}
        for _ in range(tensor_count):
            name = cursor.name()
            if name in found:
                raise cursor.bad(f"found {name} twice", Refusal.DUPLICATE_KEY)
            found[name] = _tensor(cursor)
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _LARGEST_ALIGNMENT:
            raise cursor.bad(f"found an alignment of {alignment}")
        body = -(-cursor.at // alignment) * alignment
    tensors = {n: GgufTensor(t.shape, t.kind, body + t.start) for n, t in found.items()}
    return GgufHeader(values, tensors)


def _tensor(cursor: _Cursor) -> GgufTensor:
    axes = cursor.number("I")
    if axes > _MOST_AXES:
        raise cursor.bad(f"found a tensor of {axes} axes; at most {_MOST_AXES} are read")
    shape = tuple(reversed([cursor.number("Q") for _ in range(axes)]))
    return GgufTensor(shape, cursor.number("I"), cursor.number("Q"))
