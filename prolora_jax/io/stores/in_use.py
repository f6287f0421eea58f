"""What a running process uses of a store, so that no other process removes it.

Each process has a file in the store's folder `in-use`, which it keeps locked while it runs; the
system frees the lock however the process ends. It writes down the name of a stored file before it
looks for it. Who removes files holds the gate meanwhile: a name is in the file by then, or its
process finds the file gone and computes it again.
"""

import fcntl
import os
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SUFFIX = ".names"
_GATE = ".gate"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_USED, _PASSING = "u", "p"


class InUse:
    """Names of one process, and those of the others.

    Args:
        store: the store's folder. Where it cannot be written to nothing is noted, and nobody can
            remove anything either.
    """

    def __init__(self, store: Path):
        self._folder = store / "in-use"
        self._names: set[tuple[str, str]] = set()
        self._own: Path | None = None
        self._descriptor = -1
        self._free: Callable[[], object] = _nothing

    def use(self, name: str) -> None:
        """Note a stored file, before it is looked for."""
        self._note(_USED, name)

    def make(self, name: str) -> None:
        """Note a stored file that is to go when this process ends, however it ends."""
        self._note(_PASSING, name)

    @property
    def used(self) -> frozenset[str]:
        """Names that were noted, however."""
        return frozenset(name for _, name in self._names)

    @property
    def made(self) -> frozenset[str]:
        """Names that were noted by `make`."""
        return frozenset(name for how, name in self._names if how == _PASSING)

    @contextmanager
    def closed_gate(self) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
        """Let no process note anything while files are removed.

        Yields:
            Names that other running processes use; names that processes left which were killed.
        """
        with self._gate(fcntl.LOCK_EX):
            used, left = set[str](), dict[Path, set[str]]()
            for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                if path == self._own:
                    continue
                lines = [line.split(" ", 1) for line in _lines(path)]
                if _is_alive(path):
                    used.update(line[-1] for line in lines)
                else:
                    passing = {line[-1] for line in lines if line[0] == _PASSING}
                    left[path] = passing
            yield frozenset(used), frozenset(name for names in left.values() for name in names)
            for path, names in left.items():
                if not names & used:  # else they go when whoever uses them has ended
                    with suppress(OSError):
                        path.unlink()

    def release(self, left: Iterable[str] = ()) -> None:
        """Use nothing any more.

        Args:
            left: names that were to go and are used by others, who remove them in the end.
        """
        if self._own is not None:
            with suppress(OSError):
                if not any(True for _ in left):
                    self._own.unlink(missing_ok=True)
            self._free()
        self._own = None
        self._names.clear()

    def _note(self, how: str, name: str) -> None:
        if (how, name) in self._names:
            return
        with suppress(OSError), self._gate(fcntl.LOCK_SH):
            os.write(self._opened(), f"{how} {name}\n".encode())
            self._names.add((how, name))

    def _opened(self) -> int:
        """The descriptor of this process's file, which is made and locked at the first use."""
        if self._own is None:
            path = self._folder / f"{secrets.token_hex(8)}{_SUFFIX}"
            descriptor = os.open(path, _FLAGS | os.O_EXCL, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._own, self._descriptor = path, descriptor
            self._free = weakref.finalize(self, os.close, descriptor)
        return self._descriptor

    @contextmanager
    def _gate(self, how: int) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / _GATE, _FLAGS, 0o666)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)


def _nothing() -> None:
    """What is to be freed before anything was noted."""


def _is_alive(path: Path) -> bool:
    try:
        descriptor = os.open(path, _FLAGS & ~os.O_CREAT)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lines(path: Path) -> Iterable[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return ()
