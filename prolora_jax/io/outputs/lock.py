"""The lock of an output folder: one run writes there at a time."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.guarded import irregular

LOCK = ".lock"
_OURS = re.compile(rb"\d{0,20}\n?")
# A link is not followed, and nothing is waited for: who may write to the folder may have put there
# whatever they like.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold an output folder, which is made, against other runs. The system frees it at any end.

    Raises:
        UsageError: another run holds it, or what is there is no lock.
        OutputError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _require_lock(out, "a link" if (out / LOCK).is_symlink() else None)
        descriptor = os.open(out / LOCK, _FLAGS, 0o666)
    except OSError as failure:
        message = atomic.cannot_write(out, failure.strerror or str(failure))
        raise OutputError(message, code=Refusal.CANNOT_WRITE) from failure
    try:
        status = os.fstat(descriptor)
        found = irregular(status.st_mode) or ("a file with two names" * (status.st_nlink > 1))
        _require_lock(out, found)
        said = os.pread(descriptor, 100, 0)
        _require_lock(out, None if _OURS.fullmatch(said) else "a file with other content")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = said.decode().strip()
            raise UsageError(
                f"{out}: another run writes there (process {holder or 'unknown'}); expected a "
                "folder of its own; wait for it, or name another",
                code=Refusal.LOCKED,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _require_lock(out: Path, found: str | None) -> None:
    if found:
        raise UsageError(
            f"{out / LOCK}: found {found}; expected a file that a run of prolora wrote; remove it, "
            f"or name another folder",
            code=Refusal.LOCKED,
        )
