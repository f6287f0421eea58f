"""A local folder as a place: links make a file appear once and whole.

Also one that several hosts share, where its file system makes links of which one wins, and takes
`flock`: NFS since version 4 and parallel file systems do.
"""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from prolora_jax.errors import AdapterRefused, OutputError, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.guarded import open_regular
from prolora_jax.io.places.place import Content, Head, Listed, Written, changed

_NONE_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What the system says of a name that has no file; anything else is no answer."""

_LONGEST_NAME = 255
"""Bytes of a file's name."""


class LocalPlace:
    """A local folder.

    An etag is made of the size, the time of the last write and the inode: two writes within one
    tick of the file system's clock are told apart by the inode, since every write makes a file.

    Args:
        folder: made when something is written to it.
    """

    keeps_tags = False

    def __init__(self, folder: Path):
        # Resolved: it is named in reports, which are read from other folders.
        self.folder: Path | None = folder.resolve()
        self._root = folder.resolve()
        self.shown = str(self._root)

    def list(self, below: str = "") -> Iterator[Listed]:
        """Every regular file below a folder, sorted within each folder; unfinished ones are not."""
        for place, folders, files in os.walk(self._root / below, onerror=_unread):
            folders.sort()
            for name in sorted(files):
                path = Path(place, name)
                if not name.endswith(atomic.TEMPORARY_SUFFIX) and (status := _status(path)):
                    key = path.relative_to(self._root).as_posix()
                    yield Listed(key, status.st_size, _of(status))

    def head(self, key: str) -> Head | None:
        """Size and etag; None when no regular file is there."""
        status = _status(self._root / key)
        return None if status is None else Head(status.st_size, _of(status), {})

    def read_range(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Some bytes of a file (see `FilePlace`)."""
        try:
            with open_regular(self._root / key) as file:
                if etag is not None and _of(os.fstat(file.fileno())) != etag:
                    raise changed(self.shown, key)
                file.seek(start)
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(key) from None
        except OSError as failure:
            raise _no_answer(self._root / key, failure) from failure

    def require_name(self, key: str) -> None:
        """Refuse a name that is too long for a file system (see `FilePlace`)."""
        longest = max(len(os.fsencode(part)) for part in key.split("/"))
        if longest > _LONGEST_NAME:
            raise AdapterRefused(
                f"{self.shown}/{key}: found a name of {longest} bytes; expected at most "
                f"{_LONGEST_NAME}; rename it",
                code=Refusal.BAD_NAME,
            )

    def create(self, key: str, content: Content, tags: Mapping[str, str]) -> Written:
        """Make a file that is not there (see `FilePlace`); tags are not kept."""
        won = []

        def link(temporary: Path, path: Path) -> None:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
            won.append(path)

        path = self._root / key
        self._write(path, content, link)
        return Written(bool(won), _etag(path) or "")

    def replace_if(self, key: str, content: Content, etag: str, tags: Mapping[str, str]) -> Written:
        """Replace a file that is as it was known (see `FilePlace`); tags are not kept."""
        path = self._root / key
        with _held(path.parent):
            now = _etag(path)
            if now != etag:
                return Written(False, now or "")
            self._write(path, content, os.replace)
            return Written(True, _etag(path) or "")

    def _write(self, path: Path, content: Content, publish: Callable[[Path, Path], object]) -> None:
        with ExitStack() as held, atomic.atomic_path(path, publish=publish) as temporary:
            held.enter_context(_filled(temporary, content))


def sweep_unfinished(folder: Path) -> int:
    """Remove what killed processes have left in a folder, and nothing that is being written.

    Args:
        folder: of a place, and all below it.

    Returns:
        How many files were removed.
    """
    count = 0
    for path in folder.rglob(f".*{atomic.TEMPORARY_SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            count += 1
    return count


@contextmanager
def _filled(temporary: Path, content: Content) -> Iterator[None]:
    """Fill a file, and hold it against `sweep_unfinished` until it has its name."""
    with temporary.open("wb") as target:
        fcntl.flock(target, fcntl.LOCK_EX)
        if isinstance(content, bytes):
            target.write(content)
        else:
            with open_regular(content) as source:
                shutil.copyfileobj(source, target, 2**22)
        target.flush()
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder against others who replace files in it; the system frees it at any end."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # nothing in it can be replaced
        return
    except OSError as failure:
        raise _no_answer(folder, failure) from failure
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _etag(path: Path) -> str | None:
    status = _status(path)
    return None if status is None else _of(status)


def _status(path: Path) -> os.stat_result | None:
    """What the system says of a regular file; None where none is."""
    try:
        status = path.stat()
    except ValueError:  # a name that no file has
        return None
    except OSError as failure:
        if failure.errno in _NONE_THERE:
            return None
        raise _no_answer(path, failure) from failure
    return status if stat.S_ISREG(status.st_mode) else None


def _unread(failure: OSError) -> None:
    """What becomes of a folder that cannot be listed: a listing without it would be false."""
    if failure.errno not in _NONE_THERE:
        raise _no_answer(Path(str(failure.filename)), failure) from failure


def _of(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


def _no_answer(path: Path, failure: OSError) -> OutputError:
    reason = failure.strerror or str(failure)
    return OutputError(
        f"{path}: cannot be read ({reason}); expected a folder that may be read; check the disk",
        code=Refusal.CANNOT_WRITE,
    )
