"""Adapter files whose header was seen before: their bytes, straight to where they are needed.

Thousands of files have few tables of tensors. What was checked and understood for one of them
holds for all, so that of the others nothing is taken apart but the header strings.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.adapter import Adapter, AlphaZero
from prolora_jax.adapters.formats.keys import said_in
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.io.adapters.files import tensors_of
from prolora_jax.io.adapters.peft_folder import config_beside
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.io.containers.safetensors_header import BadHeader, TensorEntry, read_header
from prolora_jax.io.guarded import open_regular

_AT_ONCE = 512
"""Places for one call of the system, which takes at least 1,024."""


class Look(NamedTuple):
    """What a file's beginning says.

    Attributes:
        table: digest of the tensors by name, dtype, shape and place.
        metadata: header strings.
        config: text of peft's configuration, in the header or beside; empty without one.
        identity: which file was looked at: its inode, time of change and size.
    """

    table: str
    metadata: Mapping[str, str]
    config: str
    identity: tuple[int, int, int]


class Traced(NamedTuple):
    """An adapter, and where in its file the numbers are.

    Attributes:
        adapter: as parsed; its arrays are those of `tensors`, or views of them.
        tensors: of the file, by key.
        entries: of the header, by key.
    """

    adapter: Adapter
    tensors: Mapping[str, np.ndarray]
    entries: Mapping[str, TensorEntry]


def look_at(path: Path, headers: HeaderTables) -> Look | None:
    """What a safetensors file's beginning says; None where it is none that can be read.

    Args:
        path: the file.
        headers: tables that were seen.
    """
    try:
        with open_regular(path) as file:
            identity = _identity(os.fstat(file.fileno()))
        digest, metadata = headers.digest(path)
        config = metadata.get(HEADER_KEY) or config_beside(path) or ""
    except (OSError, BadHeader):
        return None
    return Look(digest, said_in(metadata), config, identity)


def load_traced(path: Path, alpha_zero: AlphaZero) -> Traced:
    """Read an adapter file, and keep what its modules were made of.

    Raises:
        ProloraError: as `load_adapter`.
    """
    entries = read_header(path).tensors
    tensors, metadata = tensors_of(path)
    adapter = parse(tensors, metadata, str(path), alpha_zero, structured=True)
    return Traced(adapter, tensors, entries)


def fill(path: Path, look: Look, places: Sequence[memoryview]) -> bool:
    """Read all tensors of a file, one after the other, to where they are wanted.

    Args:
        path: the file.
        look: at it.
        places: one per tensor, in the order of the file, together as long as its body.

    Returns:
        Whether the file is the one that was looked at, and has stayed as it was.

    Raises:
        OSError: the disk does not give it.
    """
    with open_regular(path) as file:
        descriptor = file.fileno()
        if _identity(os.fstat(descriptor)) != look.identity:
            return False
        at = look.identity[2] - sum(map(len, places))
        for start in range(0, len(places), _AT_ONCE):
            views = list(places[start : start + _AT_ONCE])
            while views:
                read = os.preadv(descriptor, views, at)
                if not read:
                    return False
                at += read
                while views and read >= len(views[0]):
                    read -= len(views.pop(0))
                if read:
                    views[0] = views[0][read:]
        return _identity(os.fstat(descriptor)) == look.identity


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size
