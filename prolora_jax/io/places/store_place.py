"""What all object stores have in common: keys, pace, and what follows an unclear answer.

A request may have been done though its answer was lost, and a client that tries again is then told
that the key is taken, by itself. So every object that is created carries a token of its attempt,
and after every answer but a plain yes the store is asked what is there: ours, another's, or
nothing, and then it is tried again.

Nothing of a client's messages is shown: they hold requests, which may hold credentials.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from prolora_jax.errors import AdapterRefused, OutputError, Refusal, UsageError
from prolora_jax.io.places.pacing import Pace, StoreBusy, StoreRefused
from prolora_jax.io.places.place import Content, Head, Listed, Written

ATTEMPT = "prolora-attempt"

Page = tuple[Sequence[Listed], str | None]
"""Some of a listing, and what to ask for those behind it with; None when there are none."""

CREATE = "create"
"""What stands for an etag where nothing may be there."""

LATER = frozenset({408, 409, 425, 429})
"""Refusals of a request that may be granted the next time."""

_LARGEST_PUT = 5 * 2**30
"""Bytes of one request, S3's limit: an object that takes one request is whole or not there."""

_LONGEST_KEY = 1024
"""Bytes of a key, its prefix among them: the limit of S3 and of Google's store."""

_TOO_MUCH, _FORBIDDEN = frozenset({429, 503}), frozenset({401, 403})

_WHY_NONE = {
    "ConnectionRefused": "connection refused",
    "Connection refused": "connection refused",
    "dns error": "no host of that name",
    "NameResolutionError": "no host of that name",
    "certificate": "a certificate that is not trusted",
    "timed out": "no answer in time",
    "TimedOut": "no answer in time",
}
"""What clients write where no answer comes, and what it means."""


def has_control(key: str) -> bool:
    """Whether a name has a control character, which stores or their clients do not take."""
    return any(ord(letter) < 32 or ord(letter) == 127 for letter in key)


class Unclear(Exception):
    """Raised when it cannot be told from an answer whether an object was made.

    Attributes:
        said: what is raised if the store shows neither ours nor another's.
    """

    def __init__(self, said: OutputError):
        super().__init__(str(said))
        self.said = said


class StorePlace(ABC):
    """A prefix of a bucket; subclasses ask one kind of store, each question once.

    Args:
        shown: the place in words, without credentials.
        pace: of all requests.
        prefix: of every key, without slashes at its ends.
    """

    folder: Path | None = None
    keeps_tags = True

    def __init__(self, shown: str, pace: Pace, prefix: str = ""):
        self.shown = shown
        self._pace, self._prefix = pace, prefix

    def list(self, below: str = "") -> Iterator[Listed]:
        """Every object below a folder, in the order of their keys (see `FilePlace`)."""
        within = "/".join(part for part in (self._prefix, below) if part)
        behind: str | None = None
        while True:
            # Asked for page by page: a listing that breaks goes on behind what came.
            page, behind = self._pace.patiently(partial(self._page, below, within, behind))
            yield from page
            if behind is None:
                return

    def head(self, key: str) -> Head | None:
        """Size, etag and tags of an object; None when it is not there (see `FilePlace`)."""
        return self._pace.patiently(lambda: self._head(key))

    def read_range(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Some bytes of an object (see `FilePlace`)."""
        if length == 0:
            return b""  # a range of nothing cannot be asked for
        return self._pace.patiently(lambda: self._read(key, start, length, etag))

    def require_name(self, key: str) -> None:
        """Refuse a name that stores do not take (see `FilePlace`)."""
        self._full(key)

    def create(self, key: str, content: Content, tags: Mapping[str, str]) -> Written:
        """Make an object that is not there (see `FilePlace`)."""
        return self._put(key, content, tags, CREATE)

    def replace_if(self, key: str, content: Content, etag: str, tags: Mapping[str, str]) -> Written:
        """Replace an object that is as it was known (see `FilePlace`)."""
        return self._put(key, content, tags, etag)

    def _put(self, key: str, content: Content, tags: Mapping[str, str], known: str) -> Written:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size > _LARGEST_PUT:
            raise OutputError(
                f"{self.shown}/{key}: found {size} bytes; expected at most {_LARGEST_PUT}, which "
                "one request may have; give outputs a smaller rank",
                code=Refusal.FILE_TOO_LARGE,
            )
        token = secrets.token_hex(8)
        given = {**tags, ATTEMPT: token}
        return self._pace.patiently(lambda: self._put_once(key, content, given, known))

    def _put_once(self, key: str, content: Content, tags: Mapping[str, str], known: str) -> Written:
        try:
            return Written(True, self._write(key, content, tags, known))
        except Unclear as unclear:
            said = unclear.said
            if said.code is not Refusal.CANNOT_WRITE:
                raise said from None  # a plain no; to be asked for it might be refused, too
            found = self._head(key)
        if found is not None and found.tags.get(ATTEMPT) == tags[ATTEMPT]:
            return Written(True, found.etag)
        if known == CREATE and found is not None:
            return Written(False, found.etag)
        if known != CREATE and (found is None or found.etag != known):
            return Written(False, "" if found is None else found.etag)
        raise said

    @abstractmethod
    def _page(self, below: str, within: str, behind: str | None) -> Page:
        """Some keys, and what to ask for those behind them with; None when there are none.

        Args:
            below: a folder of this place, for messages.
            within: the same folder of the bucket; empty for all of it.
            behind: what the page before has said.
        """

    @abstractmethod
    def _head(self, key: str) -> Head | None: ...

    @abstractmethod
    def _read(self, key: str, start: int, length: int, etag: str | None) -> bytes: ...

    @abstractmethod
    def _write(self, key: str, content: Content, tags: Mapping[str, str], known: str) -> str:
        """Make or replace an object; its new etag.

        Args:
            key: of the object.
            content: of the object.
            tags: to be kept with it.
            known: etag of what is replaced, or `CREATE`.

        Raises:
            Unclear: the answer was no plain yes.
            OutputError: it was a plain no, whatever is there.
        """

    def _full(self, key: str) -> str:
        """The key in the bucket."""
        if has_control(key):
            raise AdapterRefused(
                f"{self.shown}/{key}: found a control character in the name; expected none, which "
                "stores do not take; rename it",
                code=Refusal.BAD_NAME,
            )
        full = f"{self._prefix}/{key}" if self._prefix else key
        if len(full.encode()) > _LONGEST_KEY:
            raise AdapterRefused(
                f"{self.shown}/{key}: found a key of {len(full.encode())} bytes; expected at most "
                f"{_LONGEST_KEY}, which stores take; rename it, or use shorter folders",
                code=Refusal.BAD_NAME,
            )
        return full

    def _short(self, full: str) -> str:
        """A key of the bucket as one of this place."""
        return full[len(self._prefix) + 1 :] if self._prefix else full

    def _refused_one(self, key: str, reason: str, code: Refusal) -> OutputError:
        return OutputError(
            f"{self.shown}/{key}: the store refused this file ({reason}); expected a shorter or "
            "plainer name, or a smaller file; rename it, or give outputs a smaller rank",
            code=code,
        )

    def _no_path(self, below: str) -> UsageError:
        return UsageError(
            f"{self.shown}/{below}: found a key with a control character or an empty part; "
            "expected keys that are paths; rename it",
            code=Refusal.BAD_NAME,
        )

    def _refused(self, key: str, reason: str, status: int | None = None) -> StoreRefused:
        return StoreRefused(
            f"{self.shown}/{key}: the store refused ({reason}); expected a bucket that is there "
            "and credentials that allow it; check the URL, the credentials and the clock",
            forbidden=status in _FORBIDDEN,
        )

    def _no_answer(self, key: str, reason: str, status: int | None) -> StoreBusy:
        return StoreBusy(
            f"{self.shown}/{key}: the store gave no answer ({reason}); expected one within "
            "minutes; the same command goes on where this one ended",
            self.shown,
            reason,
            reached=status is not None,
            overloaded=status in _TOO_MUCH,
        )


def why_none(text: str) -> str | None:
    """Why there was no answer, in our own words; None where a client's message does not tell.

    Args:
        text: of the client, which may hold more than may be shown.
    """
    return next((words for part, words in _WHY_NONE.items() if part in text), None)
