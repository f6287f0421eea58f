"""The adapters of a place, from its listing, and which of them must be looked at together.

A local folder is walked by `expand`, which may look into files. Of an object store there are names
alone: files count by their suffix, and what a folder is, its names say. Each worker fetches what
belongs to its inputs into a folder, and `walk_below` has the last word there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os.path import splitext
from pathlib import Path, PurePosixPath

from prolora_jax.errors import AdapterRefused, OutputError, ProloraError, Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.adapters.inputs import ARCHIVE_SUFFIXES, Input, expand, found_itself, walk_below
from prolora_jax.io.adapters.leftovers import is_training_state
from prolora_jax.io.adapters.peft_folder import (
    ADAPTER_SUFFIXES,
    COMPONENT_NAMES,
    CONFIG,
    MLX_WEIGHTS,
    WEIGHT_NAMES,
)
from prolora_jax.io.adapters.sidecars import PREVIEWS, names_beside
from prolora_jax.io.outputs.catalog_files import stamp
from prolora_jax.io.places.place import FilePlace, Listed
from prolora_jax.io.places.staging import path_below, stage

_SUFFIXES = ADAPTER_SUFFIXES | {".gguf"}
_INPUTS = _SUFFIXES | ARCHIVE_SUFFIXES
_ADDED = _SUFFIXES | {".peft"}


@dataclass(frozen=True, slots=True)
class FleetInput:
    """One adapter of a place.

    Attributes:
        name: path below the place, POSIX separators; stable, and what receipts go by.
        etag: changes when a file of the adapter does.
        size: bytes.
        item: of a local folder.
        files: of a store: what is fetched for it.
        beside: of a store: files about it, fetched where they are there.
    """

    name: str
    etag: str
    size: int = 0
    item: Input | None = None
    files: tuple[Listed, ...] = ()
    beside: tuple[Listed, ...] = ()

    @property
    def by_name(self) -> bool:
        """Whether its name says all that is said of it: nothing is fetched for it."""
        name = PurePosixPath(self.name)
        return name.suffix.lower() in ARCHIVE_SUFFIXES or is_training_state(name.name)


Unit = tuple[FleetInput, ...]
"""Inputs that are looked at together, in this order, since their outputs might share a name."""


def find_inputs(place: FilePlace, out: FilePlace, *, previews: bool = False) -> list[FleetInput]:
    """The adapters of a place, in the order of their paths.

    Args:
        place: to be searched.
        out: of the outputs, which is left out: it may lie in the same place.
        previews: whether pictures and films about adapters are wanted, too.

    Raises:
        UsageError: it is not there, there is no adapter in it, or outputs would go into it.
        OutputError: it does not answer.
    """
    # Compared as paths, which a slash too many does not tell apart.
    if PurePosixPath(out.shown) == PurePosixPath(place.shown):
        raise UsageError(found_itself(out.shown), code=Refusal.OUTPUT_EXISTS)
    if place.folder is not None:
        found = _local(place.folder, out)
    else:
        inside = out.shown.removeprefix(f"{place.shown}/")
        left_out = f"{inside}/" if inside != out.shown else None
        found = list(_listed(place.list(), left_out, previews=previews))
    if not found:
        raise UsageError(
            f"{place.shown}: found no adapter in it; expected .safetensors files or PEFT folders; "
            "check the path",
            code=Refusal.MISSING_FILE,
        )
    return found


def _local(folder: Path, out: FilePlace) -> list[FleetInput]:
    if folder.is_file():
        raise UsageError(
            f"{folder}: found a file; expected a folder of adapters; for one adapter use prolora "
            "migrate",
            code=Refusal.BAD_OPTION,
        )
    found = []
    for item in expand([folder], leave_out=out.folder):
        told = stamp(item.path) or ("", 0)
        name = item.relative.as_posix().encode(errors="surrogateescape")
        found.append(FleetInput(name.decode(errors="backslashreplace"), *told, item))
    return found


def _listed(
    files: Iterable[Listed], left_out: str | None, *, previews: bool
) -> Iterator[FleetInput]:
    """Inputs from names alone, in the order of their paths."""
    seen: dict[str, Listed] = {}
    for file in files:
        hidden = file.key.startswith(".") or "/." in file.key
        if not hidden and not (left_out and file.key.startswith(left_out)):
            seen[file.key] = file
    folders = _adapter_folders(seen)
    inside: dict[str, list[Listed]] = {folder: [] for folder in folders}
    found = []
    # By strings alone: there may be a hundred thousand, and a path of each takes time and memory.
    for key, file in seen.items():
        folder, name = _split(key)
        # The uppermost: an adapter inside of another's folder is looked at with that.
        above = next((one for one in _folders_of(key) if one in folders), None)
        if above is not None:
            inside[above].append(file)
        elif splitext(name)[1].lower() in _INPUTS:
            names = [CONFIG, *names_beside(name, previews=previews)]
            beside = (seen.get(f"{folder}/{one}" if folder else one) for one in names)
            about = tuple(one for one in beside if one is not None)
            found.append(FleetInput(key, file.etag, file.size, None, (file,), about))
    for folder, held in inside.items():
        needed = [f for f in held if _belongs(f.key, previews=previews)]
        if needed:
            etag = sha256(str([(f.key, f.etag) for f in needed]).encode()).hexdigest()[:32]
            size = sum(f.size for f in needed)
            found.append(FleetInput(folder, etag, size, None, tuple(needed)))
    # As their paths are sorted: no name has a character that comes before this one.
    found.sort(key=lambda one: one.name.replace("/", "\0"))
    return iter(found)


def _split(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name


def _folders_of(key: str) -> Iterator[str]:
    """Folders that a key is in, the uppermost first."""
    end = key.find("/")
    while end != -1:
        yield key[:end]
        end = key.find("/", end + 1)


def _adapter_folders(keys: Collection[str]) -> set[str]:
    """Folders that are adapters by the names in them (`peft_folder.is_adapter_folder`)."""
    found = set[str]()
    for key in keys:
        folder, name = _split(key)
        if name in WEIGHT_NAMES:
            found.add(folder)
            above, component = _split(folder)
            if component in COMPONENT_NAMES:
                found.add(above)
        if name == CONFIG and (f"{folder}/{MLX_WEIGHTS}" if folder else MLX_WEIGHTS) in keys:
            found.add(folder)
    return found - {""}


def _belongs(key: str, *, previews: bool) -> bool:
    name = PurePosixPath(key).name.lower()
    wanted = (*_SUFFIXES, ".json", ".md", ".yaml", ".yml", ".txt")
    return name.endswith((*wanted, *(PREVIEWS if previews else ())))


def units_of(inputs: Sequence[FleetInput]) -> list[Unit]:
    """Inputs in groups whose outputs might share a name; most groups have one."""
    groups: dict[str, list[FleetInput]] = {}
    for one in inputs:
        groups.setdefault(_bare(one.name), []).append(one)
    return [tuple(group) for group in groups.values()]


def _bare(name: str) -> str:
    """A path without what an output's name may add or replace."""
    stem, suffix = splitext(name)
    while suffix.lower() in _ADDED:
        name = stem
        stem, suffix = splitext(name)
    return name


def fetch(
    place: FilePlace,
    inputs: Sequence[FleetInput],
    folder: Path,
    sign: Callable[[], object],
) -> dict[str, ProloraError]:
    """Have inputs of a store in a local folder, each as it was listed.

    Args:
        place: where they are.
        inputs: of a listing.
        folder: gets them under their names, and an empty file where a name says all.
        sign: called with each piece that has come.

    Returns:
        Why some are not there, by their names.

    Raises:
        OutputError: the place does not answer, or the local disk takes no more.
    """
    failed: dict[str, ProloraError] = {}
    for one in inputs:
        try:
            if one.by_name:
                atomic.write_bytes(path_below(place, one.name, folder), b"")
                continue
            about = [file for file in one.beside if not (folder / file.key).exists()]
            # First what is beside it: without a licence that was listed nothing is done with it.
            stage(place, [*about, *one.files], folder, sign)
        except AdapterRefused as refused:
            failed[one.name] = refused
        except OutputError as error:
            if not isinstance(error.__cause__, NotADirectoryError | IsADirectoryError):
                raise
            # A store may have both `a.pt` and `a.pt/b.pt`.
            message = f"{place.shown}/{one.name}: found a folder by the name of a file; rename one"
            failed[one.name] = AdapterRefused(message, code=Refusal.BAD_NAME)
    return failed


def as_items(
    place: FilePlace, inputs: Sequence[FleetInput], folder: Path, failed: Mapping[str, object]
) -> list[Input]:
    """What is to be scanned of inputs that are at hand now.

    Args:
        place: that they are from.
        inputs: of one chunk.
        folder: that those of a store were fetched to.
        failed: names of those that were not.
    """
    if place.folder is not None:
        return [one.item for one in inputs if one.item is not None]
    names = [one.name for one in inputs if one.name not in failed]
    # Not `expand`: by the names in it the catalog's own folder might pass for an adapter.
    found = walk_below(folder) if folder.is_dir() else []
    # A part of what was fetched for one that failed is no input.
    return [item for item in found if any(_within(item.relative, name) for name in names)]


def _within(path: Path, name: str) -> bool:
    return path.as_posix() == name or path.as_posix().startswith(f"{name}/")
