"""Files appear whole or not at all.

A file is written under a temporary name in its own folder, flushed to the disk and renamed. A
reader never sees half of it, and a run that is killed leaves the old file or none, beside at most
a temporary file that ends in `TEMPORARY_SUFFIX`.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".prolora-tmp"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends without an exception.

    Missing folders are made. On any exception, `KeyboardInterrupt` too, the temporary file is
    removed and whatever stood at `path` stays.

    Args:
        path: where the file is to be.

    Yields:
        The path to write to, in the same folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not derived from the final name, which may already be as long as a file system allows.
    temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    mode = _usual_mode(temporary)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # a folder cannot be flushed everywhere; the file itself was
        _flush(path.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
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
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
