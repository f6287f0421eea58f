"""Fingerprints of the weights of checkpoints that have not changed since they were read.

One small file per checkpoint file, named by its path. It is believed only while the file at that
path is the very same (`io/file_state.py`), and it is a help, never needed: what is damaged, of
another version, or of a file that was changed is as good as not there.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from prolora_jax.errors import OutputError
from prolora_jax.io.atomic import write_bytes
from prolora_jax.io.file_state import FileState
from prolora_jax.io.guarded import read_small
from prolora_jax.io.stores.seals import seal_of
from prolora_jax.io.stores.store_files import Keep, delete, mark_used

VERSION = 1
"""Part of the file names: raise it when a fingerprint means another thing."""

_SUFFIX = f".v{VERSION}.weights.json"
_NAMES = re.compile(r"[0-9a-f]{32}\.v\d+\.weights\.json")


class KnownRecord(msgspec.Struct, forbid_unknown_fields=True):
    """A file of `KnownWeights`."""

    state: FileState
    fingerprints: dict[str, str]
    seal: str


class KnownWeights:
    """Fingerprints by file and by place in it, in a folder.

    Several processes may use one folder: each writes whole files, and adds to what the others have
    found. Where two write at the same time, one of them has worked for nothing.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def of(self, state: FileState) -> Mapping[str, str]:
        """Fingerprints of a file that is in this state, by place; those that are known."""
        path = self._path(state)
        record = _read(path)
        if record is None or record.state != state:
            return {}
        mark_used(path)
        return record.fingerprints

    def add(self, state: FileState, began: float, fingerprints: Mapping[str, str]) -> None:
        """Remember what was read from a file, if nothing can have changed it meanwhile.

        Args:
            state: of the file, when it was opened.
            began: when the first of these bytes was read, by `time.time`.
            fingerprints: by place.
        """
        if not (state.is_settled(began) and FileState.now(state.path) == state):
            return
        found = {**self.of(state), **fingerprints}
        # A full disk, a store for reading only, or a path that is no text.
        with suppress(OutputError, UnicodeEncodeError):
            record = KnownRecord(state, found, _seal(state, found))
            write_bytes(self._path(state), msgspec.json.encode(record))

    def entries(self) -> dict[Path, KnownRecord]:
        """Every whole file of the present version."""
        records = {path: _read(path) for path in sorted(self.folder.glob(f"*{_SUFFIX}"))}
        return {
            path: record
            for path, record in records.items()
            if record is not None and self._path(record.state) == path
        }

    def prune(self, keep: Keep, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete what `FolderStore.prune` deletes, and what is of files that were changed.

        Returns:
            Number of files and bytes.
        """
        kept = {
            path
            for path, record in self.entries().items()
            if FileState.now(record.state.path) == record.state
            and any(keep.stays(path, print_) for print_ in record.fingerprints.values())
        }
        return delete(self.folder, _NAMES, kept, dry_run=dry_run)

    def _path(self, state: FileState) -> Path:
        name = seal_of(state.path.encode(errors="surrogateescape"))
        return self.folder / f"{name}{_SUFFIX}"


def _read(path: Path) -> KnownRecord | None:
    try:
        record = msgspec.json.decode(read_small(path), type=KnownRecord)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return record if record.seal == _seal(record.state, record.fingerprints) else None


def _seal(state: FileState, fingerprints: Mapping[str, str]) -> str:
    return seal_of(msgspec.json.encode((state, sorted(fingerprints.items()))))
