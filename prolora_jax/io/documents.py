"""Small documents: YAML that people write, JSON that programs leave behind."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic

T = TypeVar("T")


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
        return msgspec.convert(msgspec.yaml.decode(path.read_bytes()), kind)
    except (OSError, msgspec.MsgspecError) as failure:
        raise UsageError(
            f"{path}: {failure}; expected a YAML file for {kind.__name__}",
            code=Refusal.BAD_OPTION,
        ) from failure


def read_json(path: Path) -> Any | None:
    """What a JSON file says; None when it is not there or was damaged."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write records as indented JSON, whole or not at all."""
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=1)
    atomic.write_bytes(path, encoded + b"\n")


def read_lines(path: Path) -> list[Any]:
    """Records of a file with one JSON document a line; none when it is not there or was damaged."""
    try:
        return msgspec.json.Decoder().decode_lines(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return []


def write_lines(path: Path, records: list[Any]) -> None:
    """Write records as JSON, one a line, whole or not at all."""
    atomic.write_bytes(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))
