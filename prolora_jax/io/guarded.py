"""The one way to open what a user gave: regular files only, and no more bytes than a budget.

A folder of other people's files may hold pipes that nobody writes to, devices without an end, and
links to either or to themselves. Opening one in the usual way may never return. `UnfitFile` is an
`OSError`, so that a reader which says why a disk gave nothing says this, too.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

SMALL_DOCUMENT = 2**23
"""Bytes of a configuration, an index or a sidecar that is read; real ones have up to 2 MB."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# The last four are not there on every system; without them the check of the opened file stands.
_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
)


class UnfitFile(OSError):
    """Raised when a path is no regular file, or one that is over its budget.

    `strerror` says what was found, in words for a user.
    """


def irregular(mode: int) -> str | None:
    """What a path is that is no regular file, in words: `a pipe`; None of a regular one."""
    if stat.S_ISREG(mode):
        return None
    return next((words for fits, words in _KINDS if fits(mode)), "no regular file")


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> BufferedReader:
    """Open a file for reading, if it is a regular one; this never waits for anybody.

    Args:
        path: of a file, or of a link to one.
        follow: whether a link is followed.

    Returns:
        The open file. What was looked at is what was opened, also when the path changes meanwhile.

    Raises:
        UnfitFile: it is a pipe, a device, a socket, a folder, or a link that is not to be followed.
        OSError: there is none, or it may not be read.
    """
    status = os.stat(path, follow_symlinks=follow)
    # Before it is opened, since opening a device may do something to it.
    _require_regular(path, status.st_mode)
    descriptor = os.open(path, _FLAGS | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    try:
        # And after, since another program may have put something else there.
        _require_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_small(path: str | os.PathLike[str], most: int = SMALL_DOCUMENT) -> bytes:
    """The bytes of a small file.

    Args:
        path: of a file, or of a link to one.
        most: how many bytes it may have; what grows while it is read is refused, too.

    Raises:
        UnfitFile: it is no regular file, or a larger one.
        OSError: there is none, or it may not be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        pieces: list[bytes] = []
        read = 0
        while size <= most and (piece := file.read(min(most + 1 - read, 2**20))):
            pieces.append(piece)
            read += len(piece)
            size = max(size, read)
    if size > most:
        raise UnfitFile(
            errno.EFBIG, f"found {size} bytes; at most {most} are read", os.fspath(path)
        )
    return b"".join(pieces)


def read_into(path: str | os.PathLike[str], room: memoryview) -> int:
    """Read a file to where there is room for it; returns how many bytes it has.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        read = 0
        while count := file.raw.readinto(room[read:]):
            read += count
    return read


def is_regular(path: Path) -> bool:
    """Whether a regular file is at a path, or a link to one; no error where it cannot be told."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a link to itself, a name too long, a zero byte in it
        return False


def _require_regular(path: str | os.PathLike[str], mode: int) -> None:
    found = "a link" if stat.S_ISLNK(mode) else irregular(mode)
    if found is not None:
        raise UnfitFile(errno.EINVAL, f"found {found}; expected a regular file", os.fspath(path))
