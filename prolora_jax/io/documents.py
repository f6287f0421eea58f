"""Small documents: YAML that people write, JSON that programs leave behind, both with budgets.

A few hundred bytes can stand for millions of values (aliases of aliases), be nested deeper than a
program can follow, or take minutes to turn into numbers. Bytes are counted before a document is
read, values and depth before anybody walks through it.
"""

import json
import re
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.guarded import SMALL_DOCUMENT, read_small

T = TypeVar("T")

MOST_VALUES = 1_000_000
"""Of a JSON document. The largest that is real, the index of a model in shards, has thousands."""
DEEPEST = 100
_TOO_DEEP = f"found more than {DEEPEST} levels"
YAML_BYTES, YAML_VALUES, YAML_SECONDS = 2**18, 10_000, 5.0
"""The reader of YAML is slow: 50 KB or 10,000 values a second. Seconds are of its own thread: a
busy machine refuses nothing."""
_LONGEST_NUMBER, _TEXT = 100, "tag:yaml.org,2002:str"
_SEPARATORS = (b",", b"[", b"{")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_OWN_FILES = 2**30
"""Bytes of records that this program has written itself."""


class BadDocument(ValueError):
    """Raised when a document cannot be read or is over a budget; the message says why."""


def parse_json(content: bytes) -> Any:
    """What a JSON document says.

    Args:
        content: UTF-8, with or without a byte-order mark.

    Raises:
        BadDocument: it is no JSON, or has too many values or levels.
    """
    if sum(map(content.count, _SEPARATORS)) > MOST_VALUES:
        # Only now the slow way: commas in texts are no values.
        bare = _QUOTED.sub(b"", content)
        if sum(map(bare.count, _SEPARATORS)) > MOST_VALUES:
            raise BadDocument(f"found more than {MOST_VALUES} values")
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise BadDocument(_TOO_DEEP) from None
    except ValueError as failure:
        raise BadDocument(f"found no JSON ({_one_line(failure)})") from None
    if max(content.count(b"["), content.count(b"{")) * 2 > DEEPEST:
        _require_depth(document)
    return document


def parse_yaml(text: str) -> Any:
    """What a YAML document says, in plain values: no tag of Python's, no alias of what is open.

    Raises:
        BadDocument: it is no YAML, or has too many values (each alias counts all that it stands
            for) or levels, or takes too long.
    """
    if len(text) > YAML_BYTES:
        raise BadDocument(f"found {len(text)} characters of YAML; at most {YAML_BYTES} are read")
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except BadDocument:
        raise
    except RecursionError:
        raise BadDocument(_TOO_DEEP) from None
    except Exception as failure:  # noqa: BLE001 (`!!int ''` is an IndexError, `!!bool x` a KeyError)
        raise BadDocument(f"found no YAML ({_one_line(failure)})") from None


def read_json_document(path: Path, most: int = SMALL_DOCUMENT) -> Any:
    """What a JSON file of somebody else's says.

    Args:
        path: of the file.
        most: bytes that are read.

    Raises:
        BadDocument: it cannot be read, is no regular file, no JSON, or over a budget.
    """
    return parse_json(_content(path, most))


def read_yaml_document(path: Path) -> Any:
    """What a YAML file of somebody else's says.

    Raises:
        BadDocument: it cannot be read, is no regular file, no YAML, or over a budget.
    """
    return parse_yaml(_text(path, YAML_BYTES))


def read_text_document(path: Path) -> str:
    """A small UTF-8 file as it is.

    Raises:
        BadDocument: it cannot be read, is no regular file, no UTF-8, or over a budget.
    """
    return _text(path, SMALL_DOCUMENT)


def read_yaml(path: Path, kind: type[T]) -> T:
    """A YAML file as a record.

    Args:
        path: of the file.
        kind: dataclass that it must fit; fields of other names are refused.

    Returns:
        The record.

    Raises:
        UsageError: the file is not there, is no YAML or does not fit.
    """
    try:
        return msgspec.convert(read_yaml_document(path), kind)
    except (BadDocument, msgspec.MsgspecError) as failure:
        raise UsageError(
            f"{path}: {failure}; expected a YAML file for {kind.__name__}",
            code=Refusal.BAD_OPTION,
        ) from failure


def require_options_file(path: Path) -> None:
    """Check that a YAML file is a map of names to values, before a library takes it as options.

    Raises:
        UsageError: it is not, or over a budget.
    """
    try:
        document = read_yaml_document(path)
        found = None if document is None else "found no map of names to values"
        if isinstance(document, dict) and all(isinstance(name, str) for name in document):
            found = None
    except BadDocument as failure:
        found = str(failure)
    if found is not None:
        raise UsageError(
            f"{path}: {found}; expected a YAML file of options. Check --config.",
            code=Refusal.BAD_OPTION,
        )


def read_json(path: Path) -> Any | None:
    """What a JSON file of our own says; None when it is not there or was damaged."""
    try:
        return read_json_document(path, _OWN_FILES)
    except BadDocument:
        return None


def write_json(path: Path, content: Any) -> None:
    """Write records as indented JSON, whole or not at all."""
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=1)
    atomic.write_bytes(path, encoded + b"\n")


def read_lines(path: Path) -> list[Any]:
    """Records of a file with one JSON document a line; none when it is not there or was damaged."""
    try:
        return msgspec.json.Decoder().decode_lines(read_small(path, _OWN_FILES))
    except (OSError, msgspec.DecodeError, RecursionError):
        return []


def read_prompts(path: Path, *, each_once: bool = True) -> tuple[str, ...]:
    """What is to be drawn, from a text file: a prompt in each line that is not empty.

    Args:
        path: of the file.
        each_once: whether a line that came before is left out.

    Raises:
        UsageError: it cannot be read, or has none.
    """
    try:
        lines = read_text_document(path).splitlines()
    except BadDocument as failure:
        raise UsageError(
            f"{path}: {failure}; expected a text file with a prompt in each line. Check --prompts.",
            code=Refusal.BAD_OPTION,
        ) from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UsageError(
            f"{path}: found no line with words; expected a prompt in each line. Write some.",
            code=Refusal.BAD_OPTION,
        )
    return tuple(dict.fromkeys(found)) if each_once else found


def write_lines(path: Path, records: list[Any]) -> None:
    """Write records as JSON, one a line, whole or not at all."""
    atomic.write_bytes(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def _content(path: Path, most: int) -> bytes:
    try:
        return read_small(path, most)
    except (OSError, ValueError) as failure:  # ValueError: a zero byte in the name
        reason = failure.strerror if isinstance(failure, OSError) else None
        raise BadDocument(f"cannot be read ({reason or failure})") from None


def _text(path: Path, most: int) -> str:
    try:
        return _content(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise BadDocument(f"found no UTF-8 text ({failure.reason})") from None


def _require_short_number(node: yaml.ScalarNode) -> None:
    """Texts may be long; to turn a long number into one takes the square of its length."""
    if node.tag != _TEXT and len(node.value) > _LONGEST_NUMBER:
        raise BadDocument(f"found a number of {len(node.value)} characters")


def _require_depth(document: Any) -> None:
    """Level by level, so that depth itself costs nothing."""
    level = [document]
    for _ in range(DEEPEST):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [v for values in inner if isinstance(values, list) for v in values]
        if not level:
            return
    raise BadDocument(_TOO_DEEP)


def _one_line(failure: Exception) -> str:
    return " ".join(str(failure).split())[:200]


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with budgets that hold while nodes are made, before any value is."""

    def __init__(self, text: str):
        super().__init__(text)
        self._values = self._depth = 0
        self._sizes: dict[int, int] = {}
        self._deadline = time.thread_time() + YAML_SECONDS

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, alias = self._values, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > DEEPEST:
            raise BadDocument(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not alias:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        elif id(node) in self._sizes:
            self._values += self._sizes[id(node)]
        else:
            raise BadDocument("found an alias inside of what it stands for")
        if self._values > YAML_VALUES:
            raise BadDocument(f"found more than {YAML_VALUES} values")
        if time.thread_time() > self._deadline:
            raise BadDocument(f"found YAML that takes longer than {YAML_SECONDS:.0f} seconds")
        if isinstance(node, yaml.ScalarNode):
            _require_short_number(node)
        return node
