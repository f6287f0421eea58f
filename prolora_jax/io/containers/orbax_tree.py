"""Orbax folders, read one array at a time, as NumPy arrays. Orbax is loaded when one is met."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.architectures.flax_trees import nested
from prolora_jax.errors import BaseModelError, OutputError, Refusal
from prolora_jax.io.atomic import cannot_write
from prolora_jax.io.containers.msgpack_tree import Leaf
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import irregular

_METADATA = "_METADATA"
_LARGEST_METADATA = 2**26


def orbax_item(folder: Path) -> Path | None:
    """The folder that has the arrays: `folder`, its only item, or its newest step's; else None.

    Args:
        folder: what a checkpointer wrote, a step of a checkpoint manager, or the manager's folder.
    """
    steps = [step for step in folder.iterdir() if step.is_dir() and step.name.isdecimal()]
    newest = max(steps, key=lambda step: int(step.name), default=folder)
    places = [folder, *sorted(folder.iterdir()), *sorted(newest.iterdir())]
    return next((place for place in places if (place / _METADATA).is_file()), None)


class OrbaxTree:
    """The arrays of an orbax folder.

    Attributes:
        path: the folder.
        leaves: arrays by their place in the tree.
    """

    def __init__(self, path: Path):
        """Read the tree's metadata; no array is read.

        Args:
            path: a folder from `orbax_item`.

        Raises:
            BaseModelError: orbax cannot read it.
        """
        # Orbax brings JAX: whoever reads other files does not wait for it.
        import orbax.checkpoint as ocp

        self.path = path.absolute()  # orbax takes no relative ones
        self._ocp = ocp
        self._handler = ocp.PyTreeCheckpointHandler()
        self.leaves: dict[tuple[str, ...], Leaf] = {}
        self._whole: dict[str, Any] | None = None
        self._require_plain_files()
        try:
            self._collect(self._handler.metadata(self._epath()).tree, ())
        except Exception as failure:  # noqa: BLE001 (orbax, tensorstore and JSON each have their own)
            raise self._bad(failure) from failure

    def read(self, place: tuple[str, ...]) -> np.ndarray:
        """One array, in its stored dtype.

        Raises:
            BaseModelError: its file is missing or damaged.
        """
        node = self._restore([place]) if self._whole is None else self._whole
        for name in place:
            node = node[name]
        return np.asarray(node)

    def read_ahead(self) -> None:
        """Read all arrays now: one by one, orbax looks through its whole index for each.

        Raises:
            BaseModelError: a file is missing or damaged.
        """
        self._whole = self._restore(self.leaves)

    def _restore(self, places: Iterable[tuple[str, ...]]) -> Any:
        """A tree of the arrays at these places."""
        keys = ["/".join(place) for place in places]
        as_numpy = self._ocp.RestoreArgs(restore_type=np.ndarray)
        args = self._ocp.args.PyTreeRestore(
            item=nested(dict.fromkeys(keys, 0)),
            restore_args=nested(dict.fromkeys(keys, as_numpy)),
            partial_restore=True,
        )
        try:
            return self._handler.restore(self._epath(), args=args)
        except Exception as failure:  # noqa: BLE001 (as above)
            raise self._bad(failure) from failure

    def _require_plain_files(self) -> None:
        """Orbax opens whatever has the right name, and waits for a pipe for ever."""
        try:
            for folder, _, names in os.walk(self.path):
                for name in names:
                    found = irregular(Path(folder, name).stat().st_mode)
                    if found is not None:
                        raise OSError(f"found {found}, {name}")
            read_json_document(self.path / _METADATA, _LARGEST_METADATA)
        except (OSError, BadDocument) as failure:
            raise self._bad(failure) from failure

    def _collect(self, node: Any, place: tuple[str, ...]) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                self._collect(child, (*place, str(name)))
        elif getattr(node, "shape", None) is not None:
            self.leaves[place] = Leaf(tuple(node.shape), np.dtype(node.dtype).name, ())

    def _epath(self) -> Any:
        from etils import epath

        return epath.Path(self.path)

    def _bad(self, failure: Exception) -> BaseModelError:
        reason = " ".join(str(failure).split())[:200]
        return BaseModelError(
            f"{self.path}: orbax cannot read it ({type(failure).__name__}: {reason}); expected a "
            f"folder that orbax wrote; copy it again",
            code=Refusal.UNREADABLE_BASE,
        )


def write_orbax(folder: Path, tree: Any) -> None:
    """Write named arrays as orbax's standard checkpointer does, whole or not at all.

    Args:
        folder: where to; it must not be there yet.
        tree: nested dictionaries of arrays.

    Raises:
        OutputError: it cannot be written.
    """
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), tree)
    except (OSError, ValueError) as failure:  # ValueError: the folder is there
        raise OutputError(
            cannot_write(folder, str(failure)), code=Refusal.CANNOT_WRITE
        ) from failure
