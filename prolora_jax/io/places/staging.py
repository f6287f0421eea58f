"""Files of a place in a local folder, whole and unchanged, or not there."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.places.place import Listed, FilePlace

PIECE = 2**23
"""Bytes of one request: several go at once, so that one slow answer holds up little."""

_AT_ONCE = 8


def stage(place: FilePlace, files: Iterable[Listed], folder: Path) -> None:
    """Fetch files by ranges, each as it was listed.

    Args:
        place: where they are.
        files: of a listing.
        folder: gets them under their keys.

    Raises:
        AdapterRefused: one was replaced since it was listed, is gone, or its key leads elsewhere.
        OutputError: the place does not answer, or the local disk takes no more.
    """
    with ThreadPoolExecutor(_AT_ONCE, "stage") as threads:
        for file in files:
            if ".." in Path(file.key).parts:
                raise AdapterRefused(
                    f"{place.shown}/{file.key}: found a name that leads out of its folder; "
                    "expected one below it; rename it",
                    code=Refusal.BAD_NAME,
                )
            starts = range(0, file.size, PIECE)
            with (
                atomic.atomic_path(folder / file.key) as temporary,
                temporary.open("wb") as target,
            ):
                ask = [(place, file, start) for start in starts]
                for piece in threads.map(_piece, ask):
                    target.write(piece)


def _piece(asked: tuple[FilePlace, Listed, int]) -> bytes:
    place, file, start = asked
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
