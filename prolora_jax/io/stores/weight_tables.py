"""Tables of numbers that were computed from weights, kept by the weights' fingerprints.

Dot products and norms are a few hundred numbers that take gigabytes to compute. A table is found
again wherever the same weights lie; a damaged one is as good as not there.
"""

import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from prolora_jax.errors import OutputError
from prolora_jax.io.atomic import write_bytes
from prolora_jax.io.guarded import read_small
from prolora_jax.io.stores.seals import seal_of
from prolora_jax.io.stores.shared_files import Beyond, Nothing
from prolora_jax.io.stores.store_files import Keep, delete, mark_used

VERSION = 1
"""Part of the file names: raise it when the numbers change."""

_SUFFIX = f".v{VERSION}.table.json"
_NAMES = re.compile(r"[0-9a-f]{32}\.v\d+\.table\.json")


class TableKey(NamedTuple):
    """What a table is of.

    Attributes:
        kind: what was computed.
        sources: fingerprints of the source's weights, in the order of the table.
        targets: of the target's.
    """

    kind: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]


class TableRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A file of `WeightTables`."""

    key: TableKey
    shape: list[int]
    numbers: list[float]
    seal: str


class WeightTables:
    """Tables in a folder, one file each.

    Args:
        folder: where, in the store's.
        beyond: what may have the store's files beside it.
    """

    def __init__(self, folder: Path, beyond: Beyond | None = None):
        self.folder = folder
        self._beyond = Nothing(folder.parent) if beyond is None else beyond

    def get(self, key: TableKey) -> np.ndarray | None:
        """A table; None when it is not there or its file is damaged."""
        path = self._path(key)
        record = _whole(path, key)
        if record is None and self._beyond.fetch(self._name(path)):
            record = _whole(path, key)
        if record is None:
            return None
        mark_used(path)
        return np.array(record.numbers, np.float64).reshape(record.shape)

    def put(self, key: TableKey, table: np.ndarray) -> None:
        """Keep a table, if its numbers are finite and the disk takes it."""
        if not np.isfinite(table).all():
            return
        shape, numbers = list(table.shape), table.astype(np.float64).ravel().tolist()
        record = TableRecord(key, shape, numbers, _seal(key, shape, numbers))
        path = self._path(key)
        with (
            suppress(OutputError),
            self._beyond.making(self._name(path), lambda: _whole(path, key) is not None) as place,
        ):
            write_bytes(place, msgspec.json.encode(record))

    def entries(self) -> dict[Path, TableRecord]:
        """Every whole file of the present version."""
        records = {path: _read(path) for path in sorted(self.folder.glob(f"*{_SUFFIX}"))}
        return {
            path: record
            for path, record in records.items()
            if record is not None and self._path(record.key) == path
        }

    def prune(self, keep: Keep, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete what `FolderStore.prune` deletes; a table stays for all of its weights.

        Returns:
            Number of files and bytes.
        """
        entries = self.entries().items()
        kept = {p for p, r in entries if keep.stays(p, *r.key.sources, *r.key.targets)}
        return delete(self.folder, _NAMES, kept, dry_run=dry_run)

    def _path(self, key: TableKey) -> Path:
        name = sha256(msgspec.json.encode(key)).hexdigest()[:32]
        return self.folder / f"{name}{_SUFFIX}"

    def _name(self, path: Path) -> str:
        """Path below the store."""
        return f"{self.folder.name}/{path.name}"


def _whole(path: Path, key: TableKey) -> TableRecord | None:
    record = _read(path)
    return None if record is None or record.key != key else record


def _read(path: Path) -> TableRecord | None:
    try:
        record = msgspec.json.decode(read_small(path), type=TableRecord)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    whole = record.seal == _seal(record.key, record.shape, record.numbers)
    return record if whole else None


def _seal(key: TableKey, shape: list[int], numbers: list[float]) -> str:
    return seal_of(msgspec.json.encode((key, shape, numbers)))
