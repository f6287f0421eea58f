"""Bases on disk: one safetensors file per weight, the weight's fingerprint in the name.

Writing is atomic, so a killed run leaves whole files only; what is there is not computed again.
"""

import os
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from prolora_jax.basis import Basis
from prolora_jax.errors import ProloraError, UsageError
from prolora_jax.io.tensors import TensorFile, write_tensors

VERSION = 1
"""Part of the file name: raise it when the numbers of a basis change, and old files are ignored."""


def default_store() -> Path:
    """`$PROLORA_STORE`, else `prolora/bases` in the user's cache folder."""
    chosen = os.environ.get("PROLORA_STORE")
    return Path(chosen) if chosen else user_cache_path("prolora") / "bases"


class FolderStore:
    """A `BasisStore` in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.v{VERSION}.safetensors"

    def get(self, fingerprint: str) -> Basis | None:
        """The basis of a weight; None when it is not there or its file is damaged."""
        path = self._path(fingerprint)
        if not path.is_file():
            return None
        try:
            file = TensorFile(path, error=UsageError)
            return Basis(file.tensor("u"), file.tensor("s"), file.tensor("v"))
        except (ProloraError, KeyError):
            # A damaged file is computed again and replaced: the store is only a cache.
            return None

    def put(self, fingerprint: str, basis: Basis) -> None:
        """Write a basis; replaces an older one of the same weight."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"u": basis.u, "s": basis.s, "v": basis.v}
        write_tensors(
            self._path(fingerprint), {k: np.ascontiguousarray(a) for k, a in tensors.items()}
        )
