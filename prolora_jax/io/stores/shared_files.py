"""The part of a store that many hosts have in common: a prefix of a place, with the same names.

Each host reads what it needs into its own folder, where it is mapped as ever. What it makes it
offers to all by *create if absent*, and where another was first it takes the other's: so all that
is computed from a file is computed from the same bytes, whatever device has made them. What comes
from the place is believed no more than what lies in the folder: its seal is looked at.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol, runtime_checkable

from prolora_jax.errors import AdapterRefused, OutputError, Refusal
from prolora_jax.io.atomic import TEMPORARY_SUFFIX, cannot_write
from prolora_jax.io.patient_lock import lock_patiently
from prolora_jax.io.places.opening import PROBE, is_forbidden, open_place, require_conditions
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.place import FilePlace, Listed
from prolora_jax.io.places.staging import stage

_log = logging.getLogger(__name__)
_MEETINGS = 5
_LOCK = f".fetching{TEMPORARY_SUFFIX}"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@runtime_checkable
class Beyond(Protocol):
    """What may have a store's files beside its folder."""

    def begin(self) -> None:
        """Ask whether it is there, and takes files, before anything else is asked.

        Raises:
            UsageError: it lets two writers make one file.
            OutputError: it does not answer, or may not be read.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        ...

    def fetch(self, name: str) -> bool:
        """Bring a file into the folder, in place of one that is not there or not whole.

        Args:
            name: path below the store.

        Returns:
            Whether it was there.

        Raises:
            OutputError: the place does not answer, or the disk takes no more.
        """
        ...

    def making(self, name: str, serves: Callable[[], bool]) -> AbstractContextManager[Path]:
        """A path to write a file to, which gets its name when the block ends.

        Args:
            name: path below the store.
            serves: whether the folder's file of that name is as good as the new one; asked when
                it is another's.

        Raises:
            OutputError: the place does not answer, or the disk takes no more.
        """
        ...


class Nothing:
    """No place beside the folder.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def begin(self) -> None:
        """See `Beyond`."""

    def has(self, name: str) -> bool:
        """See `Beyond`; it is not."""
        return False

    def fetch(self, name: str) -> bool:
        """See `Beyond`; it was not."""
        return False

    @contextmanager
    def making(self, name: str, serves: Callable[[], bool]) -> Iterator[Path]:
        """See `Beyond`: the file itself, whoever writes it replaces it."""
        yield self._folder / name


class SharedFiles:
    """A place that many hosts have in common.

    Args:
        shared: URL or folder of it.
        folder: the store's own.
        writes: whether what is made here is offered to all.
        arriving: called with the name of a file before it is fetched.
        waiting: called while the place or another process of this host is waited for.

    Raises:
        UsageError: the URL has credentials in it, or is of no known kind, or a library is missing.
    """

    def __init__(
        self,
        shared: str | Path,
        folder: Path,
        *,
        writes: bool = True,
        arriving: Callable[[str], None],
        waiting: Callable[[], object] | None = None,
    ):
        self.place: FilePlace = open_place(shared, Pace(waiting=waiting))
        self._waiting = waiting
        self._folder, self._writes, self._arriving = folder, writes, arriving
        self._begun, self._lock = False, threading.Lock()

    def begin(self) -> None:
        """See `Beyond`; one that takes no files is read alone, which is said."""
        with self._lock:
            if self._writes and not self._begun:
                self._writes = self._takes_files()
            self._begun = True

    def _takes_files(self) -> bool:
        try:
            require_conditions(self.place)
        except OutputError as failure:
            if not is_forbidden(failure):
                raise
        else:
            return True
        self.place.head(PROBE)  # one that may not be read either is told of here
        if self._waiting is None:  # else who is told of signs of life has said so
            _log.warning(
                "%s: may not be written to from here; it is read, and nothing new is kept there: "
                "what is computed stays in %s",
                *(self.place.shown, self._folder),
            )
        return False

    def has(self, name: str) -> bool:
        """See `Beyond`; one request."""
        self.begin()
        return self.place.head(name) is not None

    def fetch(self, name: str) -> bool:
        """See `Beyond`; of a host's processes one fetches it, and the others find it then."""
        self.begin()
        path = self._folder / name
        before = _identity(path)
        with alone(self._folder, name, self._waiting):
            if _identity(path) != before:
                return True
            for _ in range(_MEETINGS):
                head = self.place.head(name)
                if head is None:
                    return False
                self._arriving(name)
                with suppress(AdapterRefused):  # it was replaced meanwhile
                    listed = [Listed(name, head.size, head.etag)]
                    stage(self.place, listed, self._folder, self._waiting)
                    return True
        return False

    @contextmanager
    def making(self, name: str, serves: Callable[[], bool]) -> Iterator[Path]:
        """See `Beyond`; nobody sees the new file before it is known to be the one for all."""
        self.begin()
        path = self._folder / name
        temporary = path.parent / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        try:
            yield temporary
            if not self._writes or self._is_for_all(name, temporary, serves):
                os.replace(temporary, path)
        except OSError as failure:
            message = cannot_write(path, failure.strerror or str(failure))
            raise OutputError(message, code=Refusal.CANNOT_WRITE) from failure
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _is_for_all(self, name: str, made: Path, serves: Callable[[], bool]) -> bool:
        """Whether a new file is the one that all use; else the one that is lies in the folder."""
        written = self.place.create(name, made, {})
        for _ in range(_MEETINGS):
            if written.ours:
                return True
            if self.fetch(name) and serves():
                return False
            # Damaged, or with too few columns: ours takes its place, if it is still that one.
            if written.etag:
                written = self.place.replace_if(name, made, written.etag, {})
            else:
                written = self.place.create(name, made, {})
        raise OutputError(
            f"{self.place.shown}/{name}: was replaced each time it was read; expected one that "
            "stays; see who else writes there",
            code=Refusal.CHANGED,
        )


@contextmanager
def alone(folder: Path, name: str, waiting: Callable[[], object] | None) -> Iterator[None]:
    """Fetch one file of a store while no other process or thread of this host does.

    Args:
        folder: of the store; nothing is left in it, unless the process is killed.
        name: path below it.
        waiting: called while another is waited for.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = folder / f".{sha256(name.encode()).hexdigest()[:32]}{_LOCK}"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as failure:
            message = cannot_write(folder, failure.strerror or str(failure))
            raise OutputError(message, code=Refusal.CANNOT_WRITE) from failure
        try:
            lock_patiently(descriptor, waiting)
            # Who had it before has removed it, and a third process may hold another by its name.
            if _identity(path) == _of(os.fstat(descriptor)):
                try:
                    yield
                finally:
                    with suppress(OSError):
                        path.unlink()
                return
        finally:
            os.close(descriptor)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        return _of(path.stat())
    except OSError:
        return None


def _of(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size
