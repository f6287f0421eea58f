"""Which adapters some paths stand for, and where each one's output goes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters.flax_file import is_flax_file
from prolora_jax.io.adapters.gguf_lora import is_gguf_adapter
from prolora_jax.io.adapters.leftovers import (
    is_checkpoint_beside,
    is_earlier_output,
    is_training_state,
    is_work_folder,
    work_folder_of,
)
from prolora_jax.io.adapters.peft_folder import ADAPTER_SUFFIXES, is_adapter_folder, own_files
from prolora_jax.io.adapters.tree_folder import is_tree_folder, tree_places
from prolora_jax.io.containers.safetensors_header import BadHeader, read_header
from prolora_jax.io.guarded import irregular

ARCHIVE_SUFFIXES = frozenset({".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst"})

_RANK_KEYS = ("down", "lora_A", "lora_up", "lora_B", "up")


class Input(NamedTuple):
    """One adapter, and its place below the folder that was given (its name, for a file).

    `refusal`: why it is none, known without opening it: an archive, a pipe, a folder that may not
    be read. `ignored`: why it is left out on purpose, which is nobody's mistake: what a training
    run keeps for itself, the output folder of an earlier run.
    """

    path: Path
    relative: Path
    refusal: tuple[Refusal, str] | None = None
    ignored: str | None = None


def expand(paths: Sequence[Path], leave_out: Path | None = None) -> list[Input]:
    """The adapters that some files and folders hold, sorted, each once.

    A folder that peft wrote is one adapter; other folders are searched, links to folders too, but
    no folder twice. Hidden files are left out. Output folders of earlier runs are left out, too,
    and what refinements keep beside their outputs, unless one is given itself.

    Args:
        paths: files and folders.
        leave_out: a folder that is not searched, nor what a refinement keeps beside it: outputs may
            go into a folder of the catalog.

    Returns:
        What was found. Files that are named are taken whatever their suffix.

    Raises:
        UsageError: a path does not exist, is the folder to leave out, or two adapters would have
            the same output.
    """
    found: dict[Path, Input] = {}
    seen: set[tuple[int, int]] = set()
    for own in () if leave_out is None else (leave_out, work_folder_of(leave_out)):
        if own.is_dir():
            seen.add(_identity(own.stat()))
    for path in paths:
        if not os.path.exists(path):  # a link to itself is none; `Path.exists` would raise
            raise UsageError(
                f"{path}: no such file or folder; expected adapters; check the path",
                code=Refusal.MISSING_FILE,
            )
        if leave_out is not None:
            _refuse_itself(path, leave_out)
        for item in _guarded(_given(path, seen), path, Path(path.name)):
            other = found.setdefault(item.relative, item)
            # Not `Path.resolve`, which raises for a link to itself.
            if os.path.realpath(other.path) != os.path.realpath(item.path):
                raise UsageError(
                    f"{item.path}: would have the same output as {other.path}; expected different "
                    "names; migrate them to different folders",
                    code=Refusal.OUTPUT_EXISTS,
                )
    return [found[relative] for relative in sorted(found)]


def walk_below(folder: Path) -> list[Input]:
    """The adapters below a folder that is none itself, whatever the names in it; sorted.

    Args:
        folder: to be searched.
    """
    return sorted(_walk(folder, folder, set()), key=lambda item: item.relative)


def _refuse_itself(path: Path, out: Path) -> None:
    try:
        same = os.path.samefile(path, out)
    except OSError:  # there is no such folder yet
        return
    if same:
        raise UsageError(found_itself(out), code=Refusal.OUTPUT_EXISTS)


def found_itself(out: str | Path) -> str:
    """Why a catalog's own place is none for its outputs.

    Args:
        out: the place.
    """
    return (
        f"{out}: found the catalog itself; expected another folder for the outputs, which would "
        "have the names of the inputs; choose one (it may be inside of the catalog)"
    )


def _guarded(items: Iterator[Input], path: Path, relative: Path) -> Iterator[Input]:
    """What stands at a path, or why that cannot be told; thousands of others wait behind it."""
    try:
        yield from items
    except Exception as failure:  # noqa: BLE001 (it is this one's outcome, not the run's end)
        code = Refusal.MISSING_FILE if isinstance(failure, OSError) else Refusal.INTERNAL
        reason = getattr(failure, "strerror", None) or f"{type(failure).__name__}: {failure}"
        message = f"{path}: cannot be looked at ({reason}); move it out of the folder"
        yield Input(path, relative, (code, message))


def _given(path: Path, seen: set[tuple[int, int]]) -> Iterator[Input]:
    if path.is_dir() and not _is_adapter(path):
        yield from _walk(path, path, seen)
    else:
        yield Input(path, Path(path.name))


def _is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter, or a trainer's checkpoint of one, as the trainer left it.

    What such a checkpoint does not say, and where to say it, is told by its reader.
    """
    return is_adapter_folder(folder) or is_tree_folder(folder)


def _walk(folder: Path, top: Path, seen: set[tuple[int, int]]) -> Iterator[Input]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as failure:  # it hides what is in it; the others go on
        message = f"{folder}: cannot be searched ({failure.strerror}); check its permissions"
        yield Input(folder, folder.relative_to(top), (Refusal.MISSING_FILE, message))
        return
    if _identity(status) in seen:
        return  # a link that leads back
    seen.add(_identity(status))
    for entry in entries:
        if not entry.name.startswith("."):
            path = Path(entry.path)
            yield from _guarded(_entry(entry, top, seen), path, path.relative_to(top))


def _entry(entry: os.DirEntry[str], top: Path, seen: set[tuple[int, int]]) -> Iterator[Input]:
    path = Path(entry.path)
    if not _is_folder(entry):
        yield from _file(path, path.relative_to(top))
    elif _is_adapter(path):
        yield Input(path, path.relative_to(top))
        yield from _inside(path, top, seen)
    elif is_earlier_output(path) and _identity(path.stat()) not in seen:
        message = f"{path}: found the outputs of an earlier run, which are left out"
        yield Input(path, path.relative_to(top), ignored=message)
    elif is_work_folder(path) and _identity(path.stat()) not in seen:
        message = f"{path}: found what an unfinished refinement keeps, which is left out"
        yield Input(path, path.relative_to(top), ignored=message)
    else:
        yield from _walk(path, top, seen)


def _file(path: Path, relative: Path) -> Iterator[Input]:
    if is_training_state(path.name):
        message = f"{path}: found the state of a training run, which is left out"
        yield Input(path, relative, ignored=message)
    elif path.suffix.lower() in ARCHIVE_SUFFIXES:
        message = f"{path}: found an archive; expected adapters; unpack it first"
        yield Input(path, relative, (Refusal.ARCHIVE, message))
    elif path.suffix.lower() in ADAPTER_SUFFIXES or _is_told(path):
        yield Input(path, relative, _unfit_name(path) or _unfit_kind(path))


def _inside(folder: Path, top: Path, seen: set[tuple[int, int]]) -> Iterator[Input]:
    """What else is in a folder that peft wrote: named, since its output would lie in another's."""
    own, trees = own_files(folder), tree_places(folder)
    for item in _walk(folder, top, seen):
        if item.path in own or any(item.path.is_relative_to(place) for place in trees):
            continue
        if is_checkpoint_beside(item.path.name):
            message = f"{item.path}: found the adapter at an earlier step, which is left out"
            item = item._replace(ignored=message)
        if item.ignored is None and item.refusal is None:
            message = (
                f"{item.path}: found it inside of {folder.name}, which is an adapter that peft "
                "wrote; expected adapters beside each other; migrate it by itself, or move it out"
            )
            item = item._replace(refusal=(Refusal.OUTPUT_EXISTS, message))
        yield item


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_told(path: Path) -> bool:
    """Whether what is in a file says that it is an adapter."""
    try:
        return is_flax_file(path) or is_gguf_adapter(path)
    except OSError:
        return False  # nothing in its name says that it is an adapter


def _unfit_name(path: Path) -> tuple[Refusal, str] | None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        message = f"{shown}: found a name that is not UTF-8; expected one that is; rename it"
        return Refusal.BAD_NAME, message
    return None


def _unfit_kind(path: Path) -> tuple[Refusal, str] | None:
    """Why nothing is to be opened here: a pipe, a device, a link to nowhere or to itself."""
    try:
        found = irregular(path.stat().st_mode)
    except OSError as failure:
        message = f"{path}: cannot be looked at ({failure.strerror}); check where it leads"
        return Refusal.MISSING_FILE, message
    if found is None:
        return None
    message = f"{path}: found {found}; expected an adapter file; remove it"
    return Refusal.MISSING_FILE, message


def likely_rank(path: Path) -> int:
    """The largest rank that a safetensors header shows; 0 where it cannot be told.

    Good for nothing but an order of work: no tensor is read, nothing is checked.
    """
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    try:
        tensors = read_header(file).tensors
    except (BadHeader, OSError):
        return 0
    named = ((key, entry.shape) for key, entry in tensors.items() if len(entry.shape) >= 2)
    return max(
        (min(shape[:2]) for key, shape in named if any(part in key for part in _RANK_KEYS)),
        default=0,
    )
