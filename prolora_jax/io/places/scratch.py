"""Folders that are thrown away, also those of processes that were killed.

A folder is held by a lock as long as its process lives; who makes one removes those that nobody
holds. It gets its name when it is held: there is no moment in which another would take it away.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io.atomic import cannot_write

_NAME = "prolora-fleet-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder below the system's for temporary files; it goes when the block ends.

    Yields:
        Its path, without links in it; a name that no folder had before.

    Raises:
        OutputError: it cannot be made.
    """
    sweep()
    try:
        above = Path(tempfile.gettempdir()).resolve()
        folder = above / f".{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as failure:  # a full disk, or no folder that may be written to
        where = os.environ.get("TMPDIR") or "the folder for temporary files (TMPDIR)"
        message = cannot_write(where, failure.strerror or str(failure))
        raise OutputError(message, code=Refusal.CANNOT_WRITE) from failure
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        folder = folder.rename(above / f"{_NAME}{folder.name[1:]}")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep() -> None:
    """Remove folders of processes that are no more; other users' stay."""
    with suppress(OSError):
        above = Path(tempfile.gettempdir()).resolve()
        _sweep(above)


def _sweep(above: Path) -> None:
    for folder in above.glob(f"{_NAME}*"):
        with suppress(OSError):
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
