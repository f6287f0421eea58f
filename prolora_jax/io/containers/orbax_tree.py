"""Orbax folders, read one array at a time, as NumPy arrays, and written."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.errors import BaseModelError, OutputError, Refusal
from prolora_jax.io.atomic import TEMPORARY_SUFFIX, cannot_write
from prolora_jax.io.containers.msgpack_tree import Leaf
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import irregular

_METADATA, _NOTES, _DATABASE = "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"
_ZEROS_ARE_THERE = "store_array_data_equal_to_fill_value"
_COMMITTED = "commit_timestamp_nsecs"
_LARGEST_METADATA = 2**26
STEP = "0"
"""The step that is written: nobody trained it here."""
_CUT = ".orbax-checkpoint-tmp"
"""In the name of a folder that orbax has not written to its end."""
STEP_LEFT = "newest-step-left"
"""Start of a flag: a newer step than the one that is read cannot be."""
ITEM_ITSELF = "."
_ARRAYS = frozenset({"jax.Array", "np.ndarray", "scalar"})
_IN_DICTIONARY = 2
_INDEX_CACHE = {"cache_pool#index": {"total_bytes_limit": 100_000_000}}
"""Without it, the database's index is read again for each array."""


def orbax_items(folder: Path) -> Iterator[Path]:
    """Which folders have arrays.

    Args:
        folder: what a checkpointer wrote, a step of a checkpoint manager, or the manager's folder.

    Yields:
        `folder`, or its only item; or an item of each step, the newest first.
    """
    folders = _folders(folder)
    alone = (place for place in folders if not (place.name.isdecimal() or _CUT in place.name))
    own = next(filter(_has_arrays, (folder, *alone)), None)
    if own is not None:
        yield own
        return
    # Of one that was not ended the reader says what is wrong, where there is no other.
    steps = _numbered(folders)
    for step in [step for step in steps if _is_ended(step)] or steps:
        item = next(filter(_has_arrays, (step, *_folders(step))), None)
        if item is not None:
            yield item


def orbax_item(folder: Path) -> Path | None:
    """The first of `orbax_items` that can be opened; of none that can the newest, else None.

    Args:
        folder: as there.
    """
    items = [*orbax_items(folder)]
    whole = (item for item in items if len(items) == 1 or _opens(item))
    return next(whole, items[0] if items else None)


def passed_over(folder: Path, item: Path) -> str | None:
    """What is to be said where steps in a folder are newer than the one that is read; else None.

    Args:
        folder: that was given.
        item: of `orbax_items`, that is read.
    """
    step = item.relative_to(folder).parts[:1]
    names = [place.name for place in _numbered(_folders(folder))]
    newer = names[: names.index(step[0])] if step and step[0] in names else []
    if not newer:
        return None
    left = f"found step {', '.join(newer)}, which is not whole or has nothing to read"
    return f"{STEP_LEFT}: {left}; step {step[0]} is read"


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; of thousands of files beside them nothing is asked."""
    with os.scandir(folder) as entries:
        found = [
            Path(entry.path)
            for entry in entries
            if (Path(entry).is_dir() if entry.is_symlink() else entry.is_dir())
        ]
    return sorted(found)


def _numbered(folders: list[Path]) -> list[Path]:
    """Those that are called as steps are, the newest first."""
    found = [place for place in folders if place.name.isdecimal()]
    return sorted(found, key=lambda place: int(place.name), reverse=True)


def _is_ended(step: Path) -> bool:
    """Whether a step has the items that its manager notes, and the time when it was committed."""
    try:
        notes = read_json_document(step / _NOTES)
    except (OSError, BadDocument):
        return True  # there is none, from older managers; or whoever reads it says so
    items = notes.get("item_handlers") if isinstance(notes, dict) else None
    if not isinstance(items, dict):
        return True
    whole = all((step / name).is_dir() for name in items)
    return whole and notes.get(_COMMITTED, 0) is not None


def _has_arrays(place: Path) -> bool:
    return (place / _METADATA).is_file()


def _opens(item: Path) -> bool:
    try:
        OrbaxTree(item)
    except BaseModelError:
        return False
    return True


def orbax_steps(folder: Path) -> list[str]:
    """Names of steps of a checkpoint manager in a folder; `.` of one that has arrays itself.

    Args:
        folder: any, there or not; of one that cannot be searched nothing is known.
    """
    try:
        found = [place.name for place in folder.iterdir() if place.name.isdecimal()]
        steps = [name for name in found if _is_step(folder / name)]
        return sorted(steps, key=int) + ([ITEM_ITSELF] if (folder / _METADATA).exists() else [])
    except OSError:
        return []


def _is_step(place: Path) -> bool:
    return any((place / name).exists() for name in (_NOTES, _METADATA)) or any(
        place.glob(f"*/{_METADATA}")
    )


class OrbaxTree:
    """The arrays of an orbax folder.

    TensorStore reads them, as it does for orbax, but orbax itself is left out: it reads in an event
    loop that it closes at the first failure, and each read that ends later prints a traceback.

    Attributes:
        path: the folder.
        leaves: arrays by their place in the tree.
    """

    _writer = "orbax"
    _remedy = "copy it again"

    def __init__(self, path: Path):
        """Look up what arrays there are, their shapes and dtypes; no array is read.

        Args:
            path: a folder from `orbax_item`.

        Raises:
            BaseModelError: it is damaged, or orbax has not written it.
        """
        # It takes a while to load: whoever reads other files does not wait for it.
        import tensorstore

        self.path = path.absolute()  # TensorStore takes no relative ones
        self._require_plain_files()
        try:
            specs = self._specs()
            context = tensorstore.Context(_INDEX_CACHE)
            # All are asked for before the first is waited for.
            asked = {p: tensorstore.open(spec, context=context) for p, spec in specs.items()}
        except Exception as failure:  # noqa: BLE001 (TensorStore and odd JSON each have their own)
            raise self._bad(failure) from failure
        self._arrays = {place: self._result(place, one) for place, one in asked.items()}
        self.leaves = {
            place: Leaf(tuple(array.shape), array.dtype.numpy_dtype.name, ())
            for place, array in self._arrays.items()
        }

    def read(self, place: tuple[str, ...]) -> np.ndarray:
        """One array, in its stored dtype.

        Raises:
            BaseModelError: its file is missing or damaged.
        """
        return np.asarray(self._result(place, self._arrays[place].read()))

    def _result(self, place: tuple[str, ...], asked: Any) -> Any:
        try:
            return asked.result()
        except Exception as failure:  # noqa: BLE001 (as above)
            raise self._bad(failure, f"array {'.'.join(place)}: ") from failure

    def _specs(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """How TensorStore opens each array, by the array's place in the tree."""
        document = read_json_document(self.path / _METADATA, _LARGEST_METADATA)
        how = {
            "driver": "zarr3" if document.get("use_zarr3") else "zarr",
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
            # Orbax used to leave out what is zero everywhere, and says whether it does. Where it
            # says nothing, a part that was left out is not to be told from one that was lost.
            "fill_missing_data_reads": document.get(_ZEROS_ARE_THERE) is False,
        }
        if _ZEROS_ARE_THERE not in document:
            self._remedy = "copy it again, or load and save it with an orbax that stores zeros"
        in_database = (self.path / _DATABASE).exists()
        specs = {}
        for entry in document["tree_metadata"].values():
            keys, value = entry["key_metadata"], entry["value_metadata"]
            if value["value_type"] not in _ARRAYS or value.get("skip_deserialize"):
                continue  # a text, or nothing
            if any(key["key_type"] != _IN_DICTIONARY for key in keys):
                continue
            place = tuple(str(key["key"]) for key in keys)
            specs[place] = {**how, "kvstore": self._kvstore(".".join(place), in_database)}
        return specs

    def _kvstore(self, name: str, in_database: bool) -> dict[str, Any]:
        if not in_database:
            return {"driver": "file", "path": f"{self.path}/{name}/"}
        files = {"driver": "file", "path": f"{self.path}/"}
        return {
            "driver": "ocdbt",
            "base": files,
            "path": f"{name}/",
            "cache_pool": "cache_pool#index",
        }

    def _require_plain_files(self) -> None:
        """TensorStore opens whatever has the right name, and waits for a pipe for ever."""
        try:
            for folder, folders, names in os.walk(self.path):
                # What is linked to may be the whole disk, which is not searched for pipes.
                linked = next((name for name in folders if Path(folder, name).is_symlink()), None)
                if linked is not None:
                    raise OSError(f"found a link to a folder, {linked}")
                for name in names:
                    found = irregular(Path(folder, name).stat().st_mode)
                    if found is not None:
                        raise OSError(f"found {found}, {name}")
        except OSError as failure:
            raise self._bad(failure) from failure

    def _bad(self, failure: Exception, array: str = "") -> BaseModelError:
        reason = " ".join(str(failure).split())[:200]
        return BaseModelError(
            f"{self.path}: its arrays cannot be read ({array}{type(failure).__name__}: {reason}); "
            f"expected a folder that {self._writer} wrote; {self._remedy}",
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


def write_orbax_step(folder: Path, item: str, tree: Any) -> None:
    """Write the first step of a checkpoint manager, with one item, whole or not at all.

    Args:
        folder: the manager's; a step 0 that is there is replaced, and others must not be.
        item: what to call the tree.
        tree: nested dictionaries of arrays.

    Raises:
        OutputError: it cannot be written.
    """
    import orbax.checkpoint as ocp

    # A manager of its own: one that has later steps saves nothing, and says nothing.
    temporary = folder / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        with ocp.CheckpointManager(temporary.absolute()) as manager:
            manager.save(int(STEP), args=ocp.args.Composite(**{item: ocp.args.PyTreeSave(tree)}))
        if (folder / STEP).is_dir():
            shutil.rmtree(folder / STEP)
        os.rename(temporary / STEP, folder / STEP)
    except (OSError, ValueError) as failure:
        raise OutputError(
            cannot_write(folder, str(failure)), code=Refusal.CANNOT_WRITE
        ) from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
