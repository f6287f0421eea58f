"""Bases on disk: one safetensors file per weight, the weight's fingerprint in the name.

In the folder `operators` beside them is what is computed from pairs of bases.

Writing is atomic, so a killed run leaves whole files only; what is there is not computed again.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from prolora_jax.errors import ProloraError, UsageError
from prolora_jax.io.containers.tensors import TensorFile, write_tensors
from prolora_jax.io.stores.operator_folder import OperatorFolder
from prolora_jax.io.stores.store_files import Keep, delete, mark_used
from prolora_jax.method.basis import Basis, Extent

VERSION = 1
"""Part of the file name: raise it when the numbers of a basis change, and old files are ignored.

Operators come from bases: raise `operator_folder.VERSION`, too."""


def default_store() -> Path:
    """`$PROLORA_STORE`, else `prolora/bases` in the user's cache folder."""
    chosen = os.environ.get("PROLORA_STORE")
    return Path(chosen) if chosen else user_cache_path("prolora") / "bases"


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
    """A `BasisStore` in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.operators = OperatorFolder(folder / "operators")

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}{_SUFFIX}"

    def get(self, fingerprint: str) -> Basis | None:
        """The basis of a weight; None when it is not there or its file is damaged."""
        path = self._path(fingerprint)
        if not path.is_file():
            return None
        mark_used(path)
        try:
            file = TensorFile(path, error=UsageError)
            return Basis(file.tensor("u"), file.tensor("s"), file.tensor("v"))
        except (ProloraError, KeyError):
            # A damaged file is computed again and replaced: the store is only a cache.
            return None

    def extent(self, fingerprint: str) -> Extent | None:
        """What a basis can serve, without reading its vectors; None as in `get`."""
        path = self._path(fingerprint)
        if not path.is_file():
            return None
        try:
            file = TensorFile(path, error=UsageError)
            return Extent(file.tensor("s"), min(file.shape("u")[1], file.shape("v")[1]))
        except (ProloraError, KeyError):
            return None

    def put(self, fingerprint: str, basis: Basis) -> None:
        """Write a basis; replaces an older one of the same weight."""
        tensors = {"u": basis.u, "s": basis.s, "v": basis.v}
        write_tensors(
            self._path(fingerprint), {k: np.ascontiguousarray(a) for k, a in tensors.items()}
        )

    def entries(self) -> list[StoredBasis]:
        """Every whole basis of the present version, by shape and fingerprint."""
        found = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            extent = self.extent(path.name.removesuffix(_SUFFIX))
            if extent is not None:
                file = TensorFile(path, error=UsageError)
                shape = file.shape("u")[0], file.shape("v")[0]
                fingerprint = path.name.removesuffix(_SUFFIX)
                found.append(StoredBasis(fingerprint, shape, extent.columns, path.stat().st_size))
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
        bases = delete(self.folder, _BASIS, kept, dry_run=dry_run)
        operators = self.operators.prune(rule, dry_run=dry_run)
        return bases[0] + operators[0], bases[1] + operators[1]
