"""Folders of arrays that an index lists, as eformer writes them for EasyDeL.

Source: eformer 0.0.99.12, `serialization/serialization.py`, run by hand: an index has the place of
each array of each tree in the folder, by the tree's name, and an array is a zarr folder of its own.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from prolora_jax.io.containers.orbax_tree import OrbaxTree
from prolora_jax.io.documents import read_json_document

INDEX = "tensorstore_index.json"
_LARGEST_INDEX = 2**26
_MODEL = "model"
_ALL_THERE = {"fill_missing_data_reads": False}
"""Else a copy that has lost a part of an array is read as zeros. No trained factor is zero."""


class IndexedTree(OrbaxTree):
    """The factors of LoRA in such a folder; base weights beside them are not opened."""

    _writer = "EasyDeL"

    def _specs(self) -> dict[tuple[str, ...], dict[str, Any]]:
        document = read_json_document(self.path / INDEX, _LARGEST_INDEX)
        specs = {}
        for entry in document["prefixes"][_MODEL]:
            path = PurePosixPath(entry["path"])
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"found the place {path} in {INDEX}; expected one below it")
            if path.name in {"lora_a", "lora_b"} and path.parts[0] == _MODEL:
                files = {"driver": "file", "path": f"{self.path}/{path}/"}
                specs[path.parts[1:]] = {"driver": "zarr", "kvstore": files} | _ALL_THERE
        return specs


def is_indexed(folder: Path) -> bool:
    """Whether such a folder's index is there."""
    return (folder / INDEX).is_file()
