"""Files of a run over a catalog: the lock, stamps and hashes, links, what killed runs have left."""

import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.adapters.peft_folder import CONFIG, MLX_WEIGHTS
from prolora_jax.io.containers.indexed_tree import is_indexed
from prolora_jax.io.containers.orbax_tree import orbax_steps
from prolora_jax.io.containers.safetensors_header import BadHeader, read_header
from prolora_jax.io.guarded import open_regular

_PIECE = 2**22
_COPIED_AT_ONCE = 2**30
_SAMPLES, _SAMPLE_BYTES = 16, 512
_WEIGHTS = frozenset({".safetensors", ".bin"})


def sweep(out: Path) -> int:
    """Remove what killed runs have left in a folder that is locked; returns how many."""
    found = 0
    for folder, folders, files in os.walk(out):
        for name in [*folders, *files]:
            if name.startswith(".") and name.endswith(atomic.TEMPORARY_SUFFIX):
                found += 1
                with suppress(OSError):
                    remove_output(Path(folder, name))
    return found


def remove_output(path: Path) -> None:
    """Remove a file, or a folder with all that is in it.

    Raises:
        OSError: it stays.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def stamp(path: Path) -> tuple[str, int] | None:
    """Sizes and times of change of a file or of a folder's files, and their bytes; None when gone.

    Of a single file that peft wrote the configuration beside it belongs to it.
    """
    try:
        names = _files(path) if path.is_dir() else [path, path.parent / CONFIG]
        parts, size = [], 0
        for name in names:
            if name != path and not name.is_file():
                continue
            status = name.stat()
            parts.append(f"{name.name}:{status.st_size}:{status.st_mtime_ns}")
            size += status.st_size if name == path or path.is_dir() else 0
        return " ".join(parts), size
    except OSError:
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, of its adapter files' names and bytes in order.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for name in _files(path) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"{name.relative_to(path)}\0".encode(errors="surrogateescape"))
        with open_regular(name) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def sample_hash(path: Path) -> str:
    """A digest of a few bytes of some tensors: files that differ in it have different content.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for name in _files(path) if path.is_dir() else [path]:
        with open_regular(name) as file:
            for start in _places(name):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _places(path: Path) -> list[int]:
    """Where to look: at tensors by name, since their order in a file is the writer's."""
    try:
        header = read_header(path)
    except (BadHeader, OSError):
        size = path.stat().st_size
        return [size * i // _SAMPLES for i in range(_SAMPLES)]
    entries = list(header.tensors.values())
    chosen = entries[:: max(len(entries) // _SAMPLES, 1)]
    return [header.body + entry.start for entry in chosen]


def copy_output(existing: Path, path: Path) -> None:
    """Have the files of one output under another name, too.

    Copies and no links: a program that edits the metadata of one in place would change both. Where
    the file system can, they share their blocks until one is changed.

    Raises:
        OutputError: the disk does not take it.
    """
    if not existing.is_dir():
        with atomic.atomic_path(path) as temporary:
            _copy_one(existing, temporary)
        return
    temporary = path.parent / f".{secrets.token_hex(8)}{atomic.TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(existing, temporary, copy_function=_copy_one)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as failure:
        message = atomic.cannot_write(path, failure.strerror or str(failure))
        raise OutputError(message, code=Refusal.CANNOT_WRITE) from failure
    finally:
        with suppress(OSError):
            remove_output(temporary)


def _copy_one(existing: str | Path, path: str | Path) -> None:
    with open_regular(existing) as source, Path(path).open("wb") as target:
        if hasattr(os, "copy_file_range"):
            with suppress(OSError):  # not between these two file systems
                while os.copy_file_range(source.fileno(), target.fileno(), _COPIED_AT_ONCE):
                    pass
        shutil.copyfileobj(source, target)  # what is left, which is nothing or all


def _files(folder: Path) -> list[Path]:
    """Weights and configurations of an adapter's folder; not its README and pictures.

    Of a checkpoint all files: in which of them its arrays are is known to nobody but its reader.
    """
    every = [place for place in folder.rglob("*") if place.is_file()]
    own = [p for p in every if p.name.startswith("adapter_") or p.name == MLX_WEIGHTS]
    whole = any(place.suffix in _WEIGHTS for place in own)
    return sorted(every if not whole or orbax_steps(folder) or is_indexed(folder) else own)
