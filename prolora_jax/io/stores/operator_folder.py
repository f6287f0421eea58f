"""Operators of pairs of weights on disk: one safetensors file each, written whole or not at all.

A file's name is a hash of its key and a version; its header says the key, so that whose it is can
be told without the base models, and has a seal: what does not fit is as good as not there.
Comparisons are small JSON files beside.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from prolora_jax.errors import ProloraError, UsageError
from prolora_jax.io.atomic import write_bytes
from prolora_jax.io.containers.streamed import write_streamed
from prolora_jax.io.containers.tensors import TensorFile
from prolora_jax.io.guarded import read_small
from prolora_jax.io.stores.seals import is_intact, is_of, seal_of, sealed, warn_unfit
from prolora_jax.io.stores.shared_files import Beyond, Nothing
from prolora_jax.io.stores.store_files import DAY, Keep, delete, mark_used, will_be_read
from prolora_jax.method.operators import Form, ModuleOperators, Side, SideOperator, Summand
from prolora_jax.method.prepared import Comparison, ComparisonKey, OperatorKey, digest

VERSION = 3
"""Summand of the file names: raise it when the numbers change, those of bases included."""

_OPERATORS = f".v{VERSION}.operators.safetensors"
_COMPARISON = f".v{VERSION}.comparison.json"
_NAMES = re.compile(r"[0-9a-f]{32}\.v\d+\.(operators\.safetensors|comparison\.json)")
_SIDES = ("left", "right")


class _SideRecord(msgspec.Struct):
    """What a header says of one side."""

    form: Form
    still: int


class _ComparisonRecord(msgspec.Struct):
    """A comparison's file."""

    key: ComparisonKey
    comparison: Comparison
    seal: str


@dataclass(frozen=True)
class StoredOperators:
    """One file of operators: of which weights and arm, for which shape, how many bytes."""

    key: OperatorKey
    shape: tuple[int, int]
    size: int


@dataclass(frozen=True)
class StoredComparison:
    """One file of a comparison: of which weights, under which rule, how many bytes."""

    key: ComparisonKey
    size: int


class OperatorFolder:
    """An `OperatorStore` in a folder."""

    def __init__(
        self,
        folder: Path,
        use: Callable[[str], None] | None = None,
        every: float = DAY,
        beyond: Beyond | None = None,
    ):
        """Operators in a folder.

        Args:
            folder: where, in the store's.
            use: called with the name of a file below the store, before it is looked for.
            every: seconds after which another use is noted in a file's time.
            beyond: what may have the store's files beside it.
        """
        self.folder = folder
        self._noted, self._every = use, every
        self._beyond = Nothing(folder.parent) if beyond is None else beyond

    def has(self, key: OperatorKey) -> bool:
        """Whether operators are there; a damaged file is found by `get` only."""
        path = self._path(key)
        self._use(path)
        return path.is_file() or self._beyond.has(self._name(path))

    def get(self, key: OperatorKey) -> ModuleOperators | None:
        """Operators; None when they are not there or their file is damaged.

        The matrices are views of the mapped file, which stay good when it is replaced or removed.
        What is not in memory is read in the background, from here on.
        """
        path = self._path(key)
        self._use(path)
        found = self._here(path, key)
        if found is None and self._beyond.fetch(self._name(path)):
            found = self._here(path, key)
        return found

    def _here(self, path: Path, key: OperatorKey) -> ModuleOperators | None:
        """What the folder has; None when that is not there or damaged."""
        if not os.path.lexists(path):
            return None
        mark_used(path, self._every)
        will_be_read(path)
        while True:
            before = _identity(path)
            found = None if before is None else _read(path, key)
            # The header and the numbers are opened one after the other: if the file was replaced
            # in between, they may not belong together.
            if _identity(path) == before:
                break
        if found is None:
            warn_unfit(path)
        return found

    def put(self, key: OperatorKey, operators: ModuleOperators) -> None:
        """Write operators; older ones of the key are replaced, but for whole ones of others."""
        tensors, header = {}, _facts(key)
        for name, side in zip(_SIDES, operators, strict=True):
            tensors[f"{name}.analysis"] = side.operator.analysis
            for i, synthesis in enumerate(side.operator.synthesis):
                tensors[f"{name}.synthesis.{i}"] = synthesis
            header[name] = msgspec.json.encode(_SideRecord(side.form, side.still)).decode()
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        said, path = sealed(header, tensors), self._path(key)
        with self._beyond.making(
            self._name(path), lambda: self._here(path, key) is not None
        ) as place:
            write_streamed(place, shapes, np.dtype(np.float32), tensors.pop, said)

    def comparison(self, key: ComparisonKey) -> Comparison | None:
        """A comparison; None when it is not there or its file is damaged."""
        path = self._comparison_path(key)
        self._use(path)
        found = self._comparison_here(path, key)
        if found is None and self._beyond.fetch(self._name(path)):
            found = self._comparison_here(path, key)
        return found

    def _comparison_here(self, path: Path, key: ComparisonKey) -> Comparison | None:
        if not os.path.lexists(path):
            return None
        record = _comparison(path)
        if record is None or record.key != key:
            warn_unfit(path)
            return None
        mark_used(path, self._every)
        return record.comparison

    def put_comparison(self, key: ComparisonKey, comparison: Comparison) -> None:
        """Write a comparison; a whole one of others stays."""
        record = _ComparisonRecord(key, comparison, _comparison_seal(key, comparison))
        path = self._comparison_path(key)
        with self._beyond.making(
            self._name(path), lambda: self._comparison_here(path, key) is not None
        ) as place:
            write_bytes(place, msgspec.json.encode(record))

    def entries(self) -> list[StoredOperators]:
        """Every whole file of operators of the present version, by arm and shape."""
        paths = self.folder.glob(f"*{_OPERATORS}")
        found = ((path, _stored(path)) for path in paths)
        whole = [e for path, e in found if e is not None and self._path(e.key) == path]
        return sorted(whole, key=lambda e: (e.key.method, e.shape, e.key.source, digest(e.key)))

    def comparisons(self) -> list[StoredComparison]:
        """Every whole comparison of the present version, by weights."""
        found = []
        for path in self.folder.glob(f"*{_COMPARISON}"):
            record = _comparison(path)
            if record is not None and self._comparison_path(record.key) == path:
                found.append(StoredComparison(record.key, path.stat().st_size))
        return sorted(found, key=lambda entry: entry.key)

    def prune(self, keep: Keep, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete what `FolderStore.prune` deletes; a file stays for both of its weights.

        Returns:
            Number of files and bytes.
        """
        keys = {self._path(entry.key): entry.key for entry in self.entries()}
        keys |= {self._comparison_path(entry.key): entry.key for entry in self.comparisons()}
        kept = {path for path, key in keys.items() if keep.stays(path, key.source, key.target)}
        return delete(self.folder, _NAMES, kept, dry_run=dry_run)

    def _use(self, path: Path) -> None:
        if self._noted is not None:
            self._noted(self._name(path))

    def _name(self, path: Path) -> str:
        """Path below the store."""
        return f"{self.folder.name}/{path.name}"

    def _path(self, key: OperatorKey) -> Path:
        return self.folder / f"{digest(key)}{_OPERATORS}"

    def _comparison_path(self, key: ComparisonKey) -> Path:
        return self.folder / f"{digest(key)}{_COMPARISON}"


# A file that is not what it should be is as good as not there: it is prepared again and replaced.
# `ValueError`: tensors of another number of axes, or that end behind the file's end.
_DAMAGE = (ProloraError, KeyError, ValueError, OSError, msgspec.MsgspecError)


def _read(path: Path, key: OperatorKey) -> ModuleOperators | None:
    try:
        file = TensorFile(path, error=UsageError)
        if not (_says(file, key) and is_intact(file)):
            return None
        return ModuleOperators(*(_side(file, name) for name in _SIDES))
    except _DAMAGE:
        return None


def _facts(key: OperatorKey) -> dict[str, str]:
    return {"key": msgspec.json.encode(key).decode(), "version": str(VERSION)}


def _says(file: TensorFile, key: OperatorKey) -> bool:
    return is_of(file, _facts(key))


def _comparison_seal(key: ComparisonKey, comparison: Comparison) -> str:
    return seal_of(msgspec.json.encode((key, comparison)))


def _key(file: TensorFile) -> OperatorKey:
    return msgspec.json.decode(file.metadata["key"], type=OperatorKey)


def _side(file: TensorFile, name: str) -> Side:
    record = msgspec.json.decode(file.metadata[name], type=_SideRecord)
    parts = range(len(record.form.parts))
    analysis, synthesis = f"{name}.analysis", [f"{name}.synthesis.{i}" for i in parts]
    dim, measured = file.shape(analysis)
    for key, part in zip(synthesis, record.form.parts, strict=True):
        if file.shape(key) != (_rows(part, record.form, dim, measured), dim):
            raise KeyError(key)  # not what the form says
    operator = SideOperator(file.view(analysis), tuple(file.view(key) for key in synthesis))
    return Side(record.form, operator, record.still)


def _rows(part: Summand, form: Form, dim: int, measured: int) -> int:
    rows = {"first": form.first, "rest": measured - form.first, "all": measured, "block": dim}
    return rows[part.on]


def _stored(path: Path) -> StoredOperators | None:
    try:
        file = TensorFile(path, error=UsageError)
        (left, _), (right, _) = (file.shape(f"{name}.analysis") for name in _SIDES)
        key = _key(file)
        return StoredOperators(key, (left, right), file.identity[-1]) if _says(file, key) else None
    except _DAMAGE:
        return None


def _comparison(path: Path) -> _ComparisonRecord | None:
    try:
        record = msgspec.json.decode(read_small(path), type=_ComparisonRecord)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return record if record.seal == _comparison_seal(record.key, record.comparison) else None


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:  # removed meanwhile
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
