"""Files of a place in a local folder, whole and unchanged, or not there."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath

from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.patient_lock import lock_patiently
from prolora_jax.io.places.opening import open_place, without_secrets
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.place import FilePlace, Listed

PIECE = 2**23
"""Bytes of one request: several go at once, so that one slow answer holds up little."""

_AT_ONCE = 8
_WHOLE = ".whole"
_LONGEST_NAME = 255


def stage(
    place: FilePlace,
    files: Iterable[Listed],
    folder: Path,
    sign: Callable[[], object] | None = None,
) -> None:
    """Fetch files by ranges, each as it was listed.

    Args:
        place: where they are.
        files: of a listing.
        folder: gets them under their keys.
        sign: called with each piece, which may be a sign of life.

    Raises:
        AdapterRefused: one was replaced since it was listed, is gone, or has a key that can be no
            file's name here.
        OutputError: the place does not answer, or the local disk takes no more.
    """
    with ThreadPoolExecutor(_AT_ONCE, "stage") as threads:
        for file in files:
            path = path_below(place, file.key, folder)
            with (
                atomic.atomic_path(path) as temporary,
                temporary.open("wb") as target,
            ):
                for piece in _pieces(threads, place, file):
                    target.write(piece)
                    if sign is not None:
                        sign()


def path_below(place: FilePlace, key: str, folder: Path) -> Path:
    """Where a file of a place is fetched to.

    Args:
        place: where it is.
        key: of the file, which other programs have chosen.
        folder: that it goes into.

    Raises:
        AdapterRefused: the key leads out of the folder, or is too long for a file's name.
    """
    path = PurePosixPath(key)
    leads_out = path.is_absolute() or ".." in path.parts or "\0" in key
    if leads_out or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise AdapterRefused(
            f"{place.shown}/{key}: found a name that no file below a folder can have; expected one "
            f"without .., each part of at most {_LONGEST_NAME} bytes; rename it",
            code=Refusal.BAD_NAME,
        )
    return folder / path


def stage_once(url: str, cache: Path, sign: Callable[[], object] | None = None) -> Path:
    """A file or folder of a store on this host, fetched by the first process that asks for it.

    Args:
        url: of the file or folder.
        cache: local folder; what was fetched stays there, under the digest of its listing.
        sign: called with each piece, and while another process fetches it.

    Returns:
        Where it is.

    Raises:
        UsageError: nothing is there.
        AdapterRefused: it was replaced while it was fetched.
        OutputError: the store does not answer, or the local disk takes no more.
    """
    place, name = open_place(url, Pace(waiting=sign)), without_secrets(url).rpartition("/")[2]
    listed = [file for file in place.list() if not file.key.startswith(".")]
    alone = not listed
    if alone:
        place = open_place(url.rstrip("/").rpartition("/")[0], Pace(waiting=sign))
        head = place.head(name)
        if head is None:
            raise UsageError(
                f"{without_secrets(url)}: found nothing there; expected a base model; check the "
                "URL",
                code=Refusal.MISSING_FILE,
            )
        listed = [Listed(name, head.size, head.etag)]
    facts = [(file.key, file.size, file.etag) for file in listed]
    folder = cache / sha256(f"{place.shown} {facts}".encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder, sign):
        # The mark is written last: a process that was killed before has left none.
        if not (folder / _WHOLE).exists():
            # Under its own name, which base models are called by.
            stage(place, listed, folder if alone else folder / name, sign)
            atomic.write_bytes(folder / _WHOLE, b"")
    return folder / name


@contextmanager
def _held(folder: Path, sign: Callable[[], object] | None) -> Iterator[None]:
    """Hold a folder against other processes of this host, however long that takes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lock_patiently(descriptor, sign)
        yield
    finally:
        os.close(descriptor)


def _pieces(threads: Executor, place: FilePlace, file: Listed) -> Iterator[bytes]:
    """A file in order; no more of it is in memory than is asked for at once."""
    waiting = deque[Future[bytes]]()
    try:
        for start in range(0, file.size, PIECE):
            if len(waiting) == _AT_ONCE:
                yield waiting.popleft().result()
            waiting.append(threads.submit(_piece, place, file, start))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for one in waiting:
            one.cancel()


def _piece(place: FilePlace, file: Listed, start: int) -> bytes:
    length = min(PIECE, file.size - start)
    try:
        piece = place.read_range(file.key, start, length, file.etag)
    except FileNotFoundError:
        raise _gone(place, file, "is gone") from None
    if len(piece) != length:
        raise _gone(place, file, "is shorter than it was listed")
    return piece


def _gone(place: FilePlace, file: Listed, what: str) -> AdapterRefused:
    return AdapterRefused(
        f"{place.shown}/{file.key}: {what}; expected what was listed; run again",
        code=Refusal.CHANGED,
    )
