"""The five verbs: list, head, read_range, create, replace_if.

All that runs on many hosts rests on two of them: of many who `create` one key exactly one wins, and
`replace_if` changes what is as it was known, or nothing. There is no verb that overwrites, and none
that copies: a copy on the server has no condition on most stores.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from prolora_jax.errors import AdapterRefused, Refusal

_MEETINGS = 5

Content = bytes | Path
"""Bytes, or the file that holds them."""


class Listed(NamedTuple):
    """What a listing says of one file.

    Attributes:
        key: path below the place, POSIX separators.
        size: bytes.
        etag: changes whenever the content does; means nothing beyond its own place.
    """

    key: str
    size: int
    etag: str


class Head(NamedTuple):
    """What is known of one file.

    Attributes:
        size: bytes.
        etag: as in a listing.
        tags: strings that it was created with; empty where the place keeps none.
    """

    size: int
    etag: str
    tags: Mapping[str, str]


class Written(NamedTuple):
    """What became of a `create` or a `replace_if`.

    Attributes:
        ours: whether what is there now is what was given; else nothing was changed.
        etag: of what is there now; empty where it is gone.
    """

    ours: bool
    etag: str


@runtime_checkable
class FilePlace(Protocol):
    """Where files lie.

    Attributes:
        shown: the place in words, without credentials.
        folder: the same place as a local folder; None where it is none.
        keeps_tags: whether `head` tells the tags that a file was created with.
    """

    shown: str
    folder: Path | None
    keeps_tags: bool

    def list(self, below: str = "") -> Iterator[Listed]:
        """Every file below a folder of this place.

        Args:
            below: the folder's key, without a slash at its end; the place itself when empty.

        Raises:
            UsageError: it holds a key that is no path.
            OutputError: the place does not answer.
        """
        ...

    def head(self, key: str) -> Head | None:
        """What is known of a file; None when it is not there.

        Raises:
            OutputError: the place does not answer.
        """
        ...

    def read_range(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Some bytes of a file; fewer where it ends before.

        Args:
            key: of the file.
            start: first byte.
            length: bytes.
            etag: that the file must have.

        Raises:
            FileNotFoundError: it is not there.
            AdapterRefused: it has another etag.
            OutputError: the place does not answer.
        """
        ...

    def require_name(self, key: str) -> None:
        """Refuse a name that no file of this place can have; writes nothing.

        Raises:
            AdapterRefused: it has one that the place cannot hold.
            OutputError: the place says so (bad-name), or does not answer.
        """
        ...

    def create(self, key: str, content: Content, tags: Mapping[str, str]) -> Written:
        """Make a file that is not there; of many who try one wins.

        Args:
            key: of the file.
            content: of the file, which appears whole.
            tags: to be kept with it, where the place can: ASCII.

        Raises:
            AdapterRefused: the place cannot hold a file of that name.
            OutputError: the place cannot hold this file (bad-name, file-too-large), or does not
                answer, or may not be written to.
        """
        ...

    def replace_if(self, key: str, content: Content, etag: str, tags: Mapping[str, str]) -> Written:
        """Replace a file that is as it was known.

        Args:
            key: of the file.
            content: of the new one.
            etag: that the old one must have.
            tags: of the new one.

        Raises:
            OutputError: the place does not answer, or may not be written to.
        """
        ...


def read_whole(place: FilePlace, key: str, most: int) -> tuple[bytes, str]:
    """A small file and its etag.

    Args:
        place: where it is.
        key: of the file.
        most: bytes that it may have.

    Raises:
        FileNotFoundError: it is not there.
        AdapterRefused: it is changed all the time, or is larger.
        OutputError: the place does not answer.
    """
    for _ in range(_MEETINGS):
        # Others may replace it between the two questions.
        with suppress(_Changed):
            return _read_whole(place, key, most)
    return _read_whole(place, key, most)


def read_listed(place: FilePlace, listed: Listed, most: int) -> tuple[bytes, str]:
    """A small file of a listing, by one request; as it is now, if it was replaced since.

    Args:
        place: where it is.
        listed: the file.
        most: bytes that it may have.

    Returns:
        Its content and etag.

    Raises:
        FileNotFoundError: it is gone.
        AdapterRefused: it is changed all the time, or is larger.
        OutputError: the place does not answer.
    """
    if listed.size <= most:
        with suppress(_Changed):
            return place.read_range(listed.key, 0, listed.size, listed.etag), listed.etag
    return read_whole(place, listed.key, most)


def _read_whole(place: FilePlace, key: str, most: int) -> tuple[bytes, str]:
    found = place.head(key)
    if found is None:
        raise FileNotFoundError(key)
    if found.size > most:
        raise AdapterRefused(
            f"{place.shown}/{key}: found {found.size} bytes; expected at most {most}; see what it "
            "is, and remove it",
            code=Refusal.FILE_TOO_LARGE,
        )
    return place.read_range(key, 0, found.size, found.etag), found.etag


class _Changed(AdapterRefused):
    """Raised when a file is not the one that was listed."""


def changed(shown: str, key: str) -> AdapterRefused:
    """The refusal of a file that is not the one that was listed."""
    return _Changed(
        f"{shown}/{key}: was replaced since it was listed; expected the same content; run again",
        code=Refusal.CHANGED,
    )
