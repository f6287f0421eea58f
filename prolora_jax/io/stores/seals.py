"""What a stored file says of itself, and whether it is so: facts, tables, a sum of each tensor.

A store is believed by many runs: a flipped bit, or a file under another's name, would be wrong
numbers in each of them. The header's strings and tables are hashed, the numbers have CRC-32, which
costs a third of reading them; they are summed at the first use in a process.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from prolora_jax.io.containers.tensors import TensorFile

_SEAL, _SUMS = "seal", "sums"
_log = logging.getLogger(__name__)
_summed: set[tuple[str, tuple[int, int, int]]] = set()
"""Files of this process whose numbers were summed: path, and which file was there."""


def sealed(facts: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Header strings for a file of a store.

    Args:
        facts: what it is of; a version, a key.
        tensors: what it holds.

    Returns:
        The facts, the tensors' sums, and a seal over all of it.
    """
    sums = {key: _sum(array) for key, array in sorted(tensors.items())}
    header = {**facts, _SUMS: json.dumps(sums)}
    return header | {_SEAL: _seal(header, tensors.items())}


def is_of(file: TensorFile, facts: Mapping[str, str]) -> bool:
    """Whether a file's header is as it was written, and says these facts; no tensor is read."""
    header = dict(file.metadata)
    seal = header.pop(_SEAL, None)
    tables = ((key, file.placeholder(key)) for key in file.keys)
    return facts.items() <= header.items() and seal == _seal(header, tables)


def is_intact(file: TensorFile) -> bool:
    """Whether the numbers of a file are as they were written; its header was looked at before."""
    known = str(file.path), file.identity
    if known not in _summed:
        sums = json.loads(file.metadata[_SUMS])
        if sums != {key: _sum(file.raw(key)) for key in file.keys}:
            return False
        _summed.add(known)
    return True


def seal_of(content: bytes) -> str:
    """32 hex digits for some bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def warn_unfit(path: Path) -> None:
    """Say that a file of a store is as good as not there."""
    _log.warning("%s: damaged, or not of what its name says; it is made again", path)


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _seal(header: Mapping[str, str], tables: Iterable[tuple[str, np.ndarray]]) -> str:
    shapes = sorted((key, array.dtype.name, list(array.shape)) for key, array in tables)
    return seal_of(json.dumps([sorted(header.items()), shapes]).encode())
