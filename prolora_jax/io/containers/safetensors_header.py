"""The header of a safetensors file, read before anything believes what it says.

The library reads headers too, and decides. It allows 100 MB of them, takes the last of two equal
keys, and builds everything before it looks at the whole. This reader has lower limits, finds
equal keys, and takes the text apart piece by piece, so that a hostile header costs no more memory
than a few times its own length, which is checked against the length of the file first.

Headers as everybody writes them go a faster way: up to `SMALL`, the library's decoder builds them
whole, and what it built is looked at. Whatever is odd about one sends it the slow way, which alone
says what is wrong.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prolora_jax.errors import Refusal
from prolora_jax.io.guarded import open_regular

MAX_HEADER = 64 * 2**20
"""Bytes. Headers of several MB are normal (tags, captions, a picture), of this size are not."""
MAX_TENSORS = 100_000
"""A base model with its text encoders has about 4,000."""
MAX_NAME = 512
"""Characters of a tensor's name; real ones have up to about 150."""
MAX_AXES = 8
MAX_AXIS = 2**31
SMALL = 2**20
"""Characters of a text that is decoded whole: of the most hostile one, 31 MiB are made."""

METADATA = "__metadata__"
_BLANKS = re.compile(r"[ \t\n\r]*")
# What describes one tensor is flat and short; only the metadata may be long.
_DECODER = json.JSONDecoder()
_PAIRS = json.JSONDecoder(object_pairs_hook=list)
_WHOLE = json.JSONDecoder(object_pairs_hook=tuple)  # so that an object is no array
JSON_BLANKS = " \t\n\r"
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_LONGEST_DTYPE = 16
_LARGEST_OFFSET = 2**63
_ENTRY = re.compile(r"\{[^{}]{0,1000}+\}")


class BadHeader(Exception):
    """Raised when a header cannot be used.

    Attributes:
        code: why.
    """

    def __init__(self, code: Refusal, found: str):
        super().__init__(found)
        self.code = code


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor; `start` and `end` count from the first tensor byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """A header that was checked.

    Attributes:
        tensors: entries by name, sorted by name.
        metadata: header strings.
        body: where in the file the first tensor byte is.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    body: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a file.

    Args:
        path: a file.

    Returns:
        The header; every tensor lies within the file.

    Raises:
        BadHeader: it is none, is over a limit, has a name twice, or belongs to a longer or shorter
            file.
    """
    raw, size = header_bytes(path)
    try:
        text = raw.decode()
        tensors, metadata = _parsed_whole(text) or _parse(_Text(text))
    except ValueError as failure:  # of json, too, and of integers with thousands of digits
        reason = " ".join(str(failure).split())
        raise BadHeader(Refusal.NOT_SAFETENSORS, _unreadable(reason)) from failure
    _require_size(tensors, size, 8 + len(raw))
    return SafetensorsHeader(dict(sorted(tensors.items())), metadata, 8 + len(raw))


def told_apart(raw: bytes) -> tuple[dict[str, str], str]:
    """The header strings of a header, and the rest of its text, which is not taken apart.

    Args:
        raw: bytes of a header.

    Raises:
        BadHeader: its beginning is that of no header.
    """
    try:
        text = _Text(raw.decode())
        text.need("{")
        if text.string() != METADATA:
            return {}, text.text
        text.need(":")
        return _strings_whole(text), text.text[text.at :]
    except ValueError as failure:
        reason = " ".join(str(failure).split())
        raise BadHeader(Refusal.NOT_SAFETENSORS, _unreadable(reason)) from failure


def header_bytes(path: Path) -> tuple[bytes, int]:
    """The bytes of a file's header, after a look at their number, and how long the file is.

    Args:
        path: a file.

    Raises:
        BadHeader: what its first bytes say can be no header of this file, or is over the limit.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise BadHeader(Refusal.TRUNCATED, f"found {size} bytes of 8; fetch it again")
        length = int.from_bytes(file.read(8), "little")
        if length <= size - 8 and length > MAX_HEADER:
            found = f"found a header of {length} bytes; at most {MAX_HEADER} are read; "
            raise BadHeader(Refusal.HEADER_TOO_LARGE, f"{found}shorten it or fetch it again")
        if length <= size - 8:
            return file.read(length), size
        # Any eight bytes are a length; only what goes on like a header was cut off.
        if length <= MAX_HEADER and file.read(1) == b"{":
            found = f"found {size} bytes of {8 + length}; fetch it again"
            raise BadHeader(Refusal.TRUNCATED, found)
    raise BadHeader(Refusal.NOT_SAFETENSORS, _unreadable(f"its length, {length}, is too large"))


class _Text:
    """JSON text, taken apart from left to right."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0

    def take(self, word: str) -> bool:
        """Whether `word` comes next; if so, it is passed."""
        blanks = _BLANKS.match(self.text, self.at)
        self.at = blanks.end() if blanks else self.at
        found = self.text.startswith(word, self.at)
        self.at += len(word) * found
        return found

    def need(self, word: str) -> None:
        """Pass `word`."""
        if not self.take(word):
            raise ValueError(f"expected {word} at character {self.at}")

    def string(self) -> str:
        """Pass a string."""
        self.need('"')
        string, self.at = _DECODER.raw_decode(self.text, self.at - 1)
        return string

    def members(self) -> Iterator[str]:
        """Pass an object: yields each name, and the caller passes the value."""
        self.need("{")
        if self.take("}"):
            return
        while True:
            name = self.string()
            self.need(":")
            yield name
            if self.take("}"):
                return
            self.need(",")

    def pairs(self) -> list[tuple[str, Any]]:
        """Pass a flat, short object."""
        self.take("")
        found = _ENTRY.match(self.text, self.at)
        if found is None:
            raise ValueError(f"expected what describes a tensor at character {self.at}")
        self.at = found.end()
        return _PAIRS.decode(found[0])


def _parse(text: _Text) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] | None = None
    for name in text.members():
        if name in tensors or (name == METADATA and metadata is not None):
            raise _twice(name)
        if name == METADATA:
            metadata = _strings(text)
            continue
        if len(tensors) == MAX_TENSORS:
            raise _too_large(f"more than {MAX_TENSORS} tensors")
        if len(name) > MAX_NAME:
            raise _too_large(
                f"a tensor name of {len(name)} characters; at most {MAX_NAME} are read"
            )
        if not name.isprintable():  # it would end up in messages, on terminals
            raise ValueError(f"tensor name {ascii(name)} has characters that cannot be printed")
        tensors[name] = _entry(text.pairs(), name)
    text.take("")
    if text.at != len(text.text):
        raise ValueError(f"more text after the object, at character {text.at}")
    return tensors, metadata or {}


def _parsed_whole(text: str) -> tuple[dict[str, TensorEntry], dict[str, str]] | None:
    """What `_parse` says, of a header that is as everybody writes it; None of any other."""
    # Blanks may make an entry longer than the slow way takes it.
    if len(text) > SMALL or "  " in text.rstrip(JSON_BLANKS):
        return None
    try:
        members = _WHOLE.decode(text)
    except (ValueError, RecursionError):
        return None
    if type(members) is not tuple or len(members) > MAX_TENSORS:
        return None
    found = dict(members)
    if len(found) < len(members):
        return None
    metadata = _all_strings(found.pop(METADATA, ()))
    tensors = {name: _plain_entry(name, pairs) for name, pairs in found.items()}
    if metadata is None or None in tensors.values():
        return None
    return {name: entry for name, entry in tensors.items() if entry is not None}, metadata


def _plain_entry(name: str, pairs: object) -> TensorEntry | None:
    """A tensor's entry, if there is nothing about it that needs a word."""
    if type(pairs) is not tuple or len(pairs) != len(_FIELDS) or len(name) > MAX_NAME:
        return None
    fields = dict(pairs)
    if fields.keys() != _FIELDS or not name.isprintable():
        return None
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is not str or len(dtype) > _LONGEST_DTYPE or not dtype.isidentifier():
        return None
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        return None
    if not all(type(n) is int and 0 <= n <= MAX_AXIS for n in shape) or len(shape) > MAX_AXES:
        return None
    start, end = offsets
    if type(start) is not int or type(end) is not int or not 0 <= start <= end < _LARGEST_OFFSET:
        return None
    return TensorEntry(dtype, tuple(shape), start, end)


def _all_strings(pairs: object) -> dict[str, str] | None:
    """Header strings, if they are nothing else and none is there twice."""
    if type(pairs) is not tuple:
        return None
    found = dict(pairs)
    right = len(found) == len(pairs) and all(type(text) is str for text in found.values())
    return found if right else None


def _strings_whole(text: _Text) -> dict[str, str]:
    """What `_strings` passes and gives, of a small header at once."""
    if len(text.text) <= SMALL:
        start = text.at
        text.take("")
        try:
            pairs, end = _WHOLE.raw_decode(text.text, text.at)
        except (ValueError, RecursionError):
            pairs, end = None, start
        found = _all_strings(pairs)
        if found is not None:
            text.at = end
            return found
        text.at = start
    return _strings(text)


def _strings(text: _Text) -> dict[str, str]:
    strings: dict[str, str] = {}
    if text.take("null"):
        return strings
    for name in text.members():
        if name in strings:
            raise _twice(f"{METADATA}.{name}")
        strings[name] = text.string()
    return strings


def _entry(pairs: list[tuple[str, Any]], name: str) -> TensorEntry:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _twice(f"a field of {name}")
    dtype, shape, offsets = (fields.pop(key, None) for key in ("dtype", "shape", "data_offsets"))
    if (
        fields
        or not isinstance(dtype, str)
        or not (isinstance(shape, list) and all(map(_is_count, shape)))
        or not (isinstance(offsets, list) and all(map(_is_count, offsets)) and len(offsets) == 2)
    ):
        raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets alone")
    if len(shape) > MAX_AXES or max(shape, default=0) > MAX_AXIS:
        raise _too_large(
            f"tensor {name} with {len(shape)} axes, the longest of {max(shape)}; at most "
            f"{MAX_AXES} of {MAX_AXIS} are read"
        )
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _is_count(number: object) -> bool:
    return type(number) is int and number >= 0  # not isinstance: True is an int, too


def _require_size(tensors: Mapping[str, TensorEntry], size: int, body: int) -> None:
    for name, entry in tensors.items():
        if entry.end < entry.start:
            found = _unreadable(f"tensor {name} ends before its start")
            raise BadHeader(Refusal.NOT_SAFETENSORS, found)
    expected = body + max((entry.end for entry in tensors.values()), default=0)
    if size < expected:
        raise BadHeader(Refusal.TRUNCATED, f"found {size} bytes of {expected}; fetch it again")
    if size > expected:
        raise BadHeader(
            Refusal.NOT_SAFETENSORS,
            f"found {size - expected} bytes after the last tensor; fetch it again",
        )


def _twice(what: str) -> BadHeader:
    shown = what if what.isprintable() else ascii(what)
    return BadHeader(
        Refusal.DUPLICATE_KEY,
        f"found {shown[:MAX_NAME]} twice in the header; remove one or fetch it again",
    )


def _too_large(what: str) -> BadHeader:
    return BadHeader(Refusal.HEADER_TOO_LARGE, f"found {what}; shorten it or fetch it again")


def _unreadable(reason: str) -> str:
    return f"found no readable header ({reason[:400]}); fetch it again"
