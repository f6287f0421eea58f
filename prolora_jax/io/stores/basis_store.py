"""Bases on disk: one safetensors file per weight, the weight's fingerprint in the name.

In folders beside them: `operators`, what is computed from pairs of bases; `tables`, dot products of
weights; `weights`, which fingerprints the weights of a checkpoint have.

Writing is atomic, so a killed run leaves whole files only; what is there is not computed again.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from prolora_jax.errors import ProloraError, UsageError
from prolora_jax.io.containers.tensors import TensorFile, write_tensors
from prolora_jax.io.stores.in_use import InUse
from prolora_jax.io.stores.known_weights import KnownWeights
from prolora_jax.io.stores.operator_folder import OperatorFolder
from prolora_jax.io.stores.seals import is_intact, is_of, sealed, warn_unfit
from prolora_jax.io.stores.shared_files import Beyond, Nothing, SharedFiles
from prolora_jax.io.stores.store_address import StoreAddress
from prolora_jax.io.stores.store_files import DAY, MINUTE, Keep, delete, evict, mark_used
from prolora_jax.io.stores.weight_tables import WeightTables
from prolora_jax.method.basis import Basis, Extent

VERSION = 2
"""Part of the file name: raise it when the numbers of a basis change, and old files are ignored.

Operators come from bases: raise `operator_folder.VERSION`, too."""


WORTH_SAYING = 2**30
"""Bytes from which a store says beforehand what will be written to it."""

_PARTS = 2**16
_log = logging.getLogger(__name__)


_SUFFIX = f".v{VERSION}.safetensors"
_BASIS = re.compile(r"[0-9a-f]{32}\.v\d+\.safetensors")


@dataclass(frozen=True)
class StoredBasis:
    """One file of the store: whose basis, of which weight's shape, how many columns and bytes."""

    fingerprint: str
    shape: tuple[int, int]
    columns: int
    size: int


class FolderStore:
    """A `BasisStore` in a folder.

    Args:
        folder: where.
        keeps: whether what is computed here stays. Else subspaces go when the store is closed, and
            operators are not written at all; comparisons, dot products and fingerprints stay.
        limit: bytes that all of it may have when the store is closed; what was not used for the
            longest time goes first, and never what another running process uses.
        noted: whether what is used is noted for other processes; a worker's parent has done it.
        shared: URL or folder that many hosts have in common, and that `folder` is this host's copy
            of: what is not here is looked for there, and what is made here goes there, if it stays.
            A folder of another place, or of none, holds other bytes: it is to be another.
        share: which part of what many hosts compute is done first here: its number, from 0, and how
            many there are. None: one of very many, by chance.
        waiting: called while the shared place is waited for, which may be a sign of life.

    Raises:
        UsageError: `shared` cannot be meant.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keeps: bool = True,
        limit: int | None = None,
        noted: bool = True,
        shared: str | Path | None = None,
        share: tuple[int, int] | None = None,
        waiting: Callable[[], object] | None = None,
    ):
        self.folder, self.waiting = folder, waiting
        self.keeps, self.limit = keeps, limit
        self.address = StoreAddress(folder, shared)
        self.in_use = InUse(folder) if noted else None
        use = _nobody if self.in_use is None else self.in_use.use
        every = DAY if limit is None else MINUTE
        self._beyond: Beyond = Nothing(folder)
        self.share: tuple[int, int] | None = None
        if shared is not None:
            self.share = share or (secrets.randbelow(_PARTS), _PARTS)
            self._beyond = SharedFiles(
                shared, folder, writes=keeps, arriving=self._arriving, waiting=waiting
            )
        self.operators = OperatorFolder(folder / "operators", use, every, self._beyond)
        self.tables = WeightTables(folder / "tables", self._beyond)
        self.known = KnownWeights(folder / "weights")
        self._use, self._every = use, every

    def expect(self, size: int) -> None:
        """Say, before it is computed, how much will be written here, where that is much.

        Args:
            size: bytes, about.
        """
        if size < WORTH_SAYING:
            return
        folder = next(p for p in (self.folder, *self.folder.absolute().parents) if p.is_dir())
        free = shutil.disk_usage(folder).free
        fate = "will stay there" if self.keeps else "go when the command is done"
        _log.warning(
            "%s: about %.1f GB of subspaces%s will be written, and %s; %.1f GB are free",
            *(self.folder, size / 1e9, " and operators" if self.keeps else "", fate, free / 1e9),
        )

    def begin(self) -> None:
        """Ask what hosts have in common whether it is there; the first look at it does that, too.

        Raises:
            UsageError: it lets two writers make one file.
            OutputError: it does not answer, or may not be read.
        """
        self._beyond.begin()

    def trim(self) -> None:
        """Remove what is over the limit, and used by no running process."""
        if self.in_use is None or self.limit is None or not self.folder.is_dir():
            return
        with suppress(OSError), self.in_use.closed_gate() as (others, _):
            evict(self.folder, self.limit, others | self.in_use.used)

    def close(self) -> None:
        """Remove what is not to stay, and what is over the limit; use nothing any more."""
        if self.in_use is None or not self.folder.is_dir():
            return
        left: frozenset[str] = frozenset()
        with suppress(OSError), self.in_use.closed_gate() as (others, passing):
            going = passing | self.in_use.made
            for name in going - others:
                (self.folder / name).unlink(missing_ok=True)
            left = going & others
            if self.limit is not None:
                evict(self.folder, self.limit, others)
        self.in_use.release(left)

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}{_SUFFIX}"

    def get(self, fingerprint: str) -> Basis | None:
        """The basis of a weight; None when it is not there or its file is damaged."""
        file = self._intact(fingerprint)
        if file is None:
            return None
        mark_used(file.path, self._every)
        return Basis(file.tensor("u"), file.tensor("s"), file.tensor("v"))

    def has(self, fingerprint: str) -> bool:
        """Whether a basis is there, by its name; a damaged one is found when it is opened."""
        path = self._path(fingerprint)
        return path.is_file() or self._beyond.has(path.name)

    def extent(self, fingerprint: str) -> Extent | None:
        """What a basis can serve; its vectors are summed, but not kept. None as in `get`."""
        file = self._intact(fingerprint)
        return None if file is None else _extent(file)

    def _intact(self, fingerprint: str) -> TensorFile | None:
        """The open file of a basis; None when it is not there or not as it was written.

        A damaged file is computed again and replaced: the store is only a cache.
        """
        path = self._path(fingerprint)
        self._use(path.name)
        file = self._here(path)
        if file is None and self._beyond.fetch(path.name):
            file = self._here(path)
        return file

    def _here(self, path: Path) -> TensorFile | None:
        """What the folder has."""
        if not os.path.lexists(path):
            return None
        file = _opened(path)
        if file is None or not is_intact(file):
            warn_unfit(path)
            return None
        return file

    def put(self, fingerprint: str, basis: Basis) -> None:
        """Write a basis; replaces an older one of the same weight, but for others' that serve."""
        path = self._path(fingerprint)
        self._arriving(path.name)
        self._use(path.name)
        named = {"u": basis.u, "s": basis.s, "v": basis.v}
        tensors = {key: np.ascontiguousarray(array) for key, array in named.items()}

        def serves() -> bool:
            file = self._here(path)
            return file is not None and _extent(file).columns >= basis.extent.columns

        with self._beyond.making(path.name, serves) as place:
            write_tensors(place, tensors, sealed(_facts(fingerprint), tensors))

    def _arriving(self, name: str) -> None:
        """Note a file that is about to come here, if it is to go with this process."""
        passing = not self.keeps and name.endswith(".safetensors")
        if passing and self.in_use is not None and not os.path.lexists(self.folder / name):
            self.in_use.make(name)

    def entries(self) -> list[StoredBasis]:
        """Every whole basis of the present version, by shape and fingerprint."""
        found = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            file, fingerprint = _opened(path), path.name.removesuffix(_SUFFIX)
            if file is not None:
                shape = file.shape("u")[0], file.shape("v")[0]
                columns = _extent(file).columns
                found.append(StoredBasis(fingerprint, shape, columns, file.identity[-1]))
        return sorted(found, key=lambda entry: (entry.shape, entry.fingerprint))

    def prune(
        self,
        keep: Collection[str] | None,
        older_than: float | None = None,
        *,
        dry_run: bool = False,
    ) -> tuple[int, int]:
        """Delete damaged files, leftovers of killed runs and other versions; operators', too.

        Args:
            keep: fingerprints; whole files stay if all of their weights are among them.
            older_than: days; whole files stay that were used since. With `keep`, either is
                enough to stay; without both, every whole file does.
            dry_run: count only.

        Returns:
            Number of files and bytes. Files that are not the store's are never touched.
        """
        rule = Keep(keep if keep is None else frozenset(keep), older_than)
        whole = {entry.fingerprint: self._path(entry.fingerprint) for entry in self.entries()}
        kept = {path for fingerprint, path in whole.items() if rule.stays(path, fingerprint)}
        gone = [delete(self.folder, _BASIS, kept, dry_run=dry_run)]
        gone += [
            part.prune(rule, dry_run=dry_run) for part in (self.operators, self.tables, self.known)
        ]
        return sum(files for files, _ in gone), sum(size for _, size in gone)


@cache
def store_at(address: StoreAddress, waiting: Callable[[], object] | None = None) -> FolderStore:
    """The store at a place, for what a process does on behalf of another that has it open."""
    shared = address.shared
    return FolderStore(address.folder, noted=False, shared=shared, waiting=waiting or _nobody)


def _nobody(name: str = "") -> None:
    """What is used is noted nowhere, and nobody asks for signs of life."""


def _facts(fingerprint: str) -> dict[str, str]:
    return {"fingerprint": fingerprint, "version": str(VERSION)}


def _opened(path: Path) -> TensorFile | None:
    """A basis whose header is as it was written and says the file's name."""
    try:
        file = TensorFile(path, error=UsageError)
        return file if is_of(file, _facts(path.name.removesuffix(_SUFFIX))) else None
    except ProloraError:
        return None


def _extent(file: TensorFile) -> Extent:
    return Extent(file.tensor("s"), min(file.shape("u")[1], file.shape("v")[1]))
