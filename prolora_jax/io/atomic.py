"""Files appear whole or not at all.

A file is written under a temporary name in its own folder, flushed to the disk and renamed. A
reader never sees half of it, and a run that is killed leaves the old file or none, beside at most
a temporary file that ends in `TEMPORARY_SUFFIX`.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prolora_jax.errors import OutputError, Refusal

TEMPORARY_SUFFIX = ".prolora-tmp"


@contextmanager
def atomic_path(
    path: str | os.PathLike[str], publish: Callable[[Path, Path], object] | None = None
) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends without an exception.

    Missing folders are made. On any exception, `KeyboardInterrupt` too, the temporary file is
    removed and whatever stood at `path` stays.

    Args:
        path: where the file is to be.
        publish: gives the finished temporary file its name: `os.replace` if None; `os.link` would
            replace nothing.

    Yields:
        The path to write to, in the same folder.

    Raises:
        OutputError: the disk is full, the folder may not be written to, or the like.
    """
    path = Path(path)
    # Not derived from the final name, which may already be as long as a file system allows.
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _usual_mode(temporary)
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        _flush(temporary)
        (publish or os.replace)(temporary, path)
    except OSError as failure:
        message = cannot_write(path, failure.strerror or str(failure))
        raise OutputError(message, code=Refusal.CANNOT_WRITE) from failure
    finally:
        with suppress(OSError):  # after a failure, or where it was linked
            temporary.unlink(missing_ok=True)
    with suppress(OSError):  # a folder cannot be flushed everywhere; the file itself was
        _flush(path.parent)


def cannot_write(path: str | os.PathLike[str], reason: str) -> str:
    """The message for an output that could not be written, for a reason that the disk gave."""
    return (
        f"{path}: cannot be written ({' '.join(reason.split())}); expected a folder with free "
        f"space that may be written to; make room or name another"
    )


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write a file of these bytes, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a UTF-8 file with this text, whole or not at all."""
    write_bytes(path, content.encode())


def _usual_mode(path: Path) -> int:
    """Permissions of a file that is made here in the usual way; the file is removed again."""
    try:
        path.touch(exist_ok=False)
        return path.stat().st_mode & 0o777
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
