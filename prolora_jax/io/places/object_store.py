"""An object store as a place, by obstore; what follows an unclear answer.

A request may have been done though its answer was lost, and a client that tries again is then told
that the key is taken, by itself. So every object that is created carries a token of its attempt,
and after every answer but a plain yes the store is asked what is there: ours, another's, or
nothing, and then it is tried again.

Nothing of obstore's messages is shown: they hold requests, which may hold credentials.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import obstore
from obstore import exceptions

from prolora_jax.errors import AdapterRefused, OutputError, Refusal, UsageError
from prolora_jax.io.places.pacing import Pace, StoreBusy
from prolora_jax.io.places.place import Content, Head, Listed, Written, changed

ATTEMPT = "prolora-attempt"

_LARGEST_PUT = 5 * 2**30
"""Bytes of one request, S3's limit: an object that takes one request is whole or not there."""

_LONGEST_KEY = 1024
"""Bytes of a key, its prefix among them: S3's limit."""

_PAGE = 1000
"""Keys of one answer to a listing, S3's limit."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_OF_ONE = {"KeyTooLongError": Refusal.BAD_NAME, "EntityTooLarge": Refusal.FILE_TOO_LARGE}
"""What is said of one object, and not of all: a store's own limits may be lower than S3's."""

_LATER = frozenset({408, 409, 425, 429})
_TOO_MUCH = frozenset({429, 503})
_NOT_THERE = (FileNotFoundError, exceptions.NotFoundError)
_CONDITION = (exceptions.AlreadyExistsError, exceptions.PreconditionError)
# Of a missing bucket a store says the same as of a missing object.
_NEVER = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
)
_ANY = (exceptions.BaseError, OSError)


class ObjectPlace:
    """A prefix of a bucket.

    Args:
        shown: the place in words, without credentials.
        store: of obstore, without retries of its own: after them it cannot be told who won.
        pace: of all requests.
        prefix: of every key, without slashes at its ends.
    """

    folder: Path | None = None
    keeps_tags = True

    def __init__(self, shown: str, store: Any, pace: Pace, prefix: str = ""):
        self.shown = shown
        self._store, self._pace, self._prefix = store, pace, prefix

    def list(self, below: str = "") -> Iterator[Listed]:
        """Every object below a folder, in the order of their keys (see `FilePlace`)."""
        prefix = "/".join(part for part in (self._prefix, below) if part)
        cut = len(self._prefix) + 1 if self._prefix else 0
        last: str | None = None
        while True:
            page = self._pace.patiently(partial(self._page, below, prefix, last))
            for one in page:
                yield Listed(one["path"][cut:], one["size"], one["e_tag"] or "")
            if len(page) < _PAGE:
                return
            # Asked for page by page: a listing that breaks goes on behind the last key that came.
            last = page[-1]["path"]

    def _page(self, below: str, prefix: str, last: str | None) -> Any:
        try:
            stream = obstore.list(self._store, prefix or None, offset=last, chunk_size=_PAGE)
            return next(iter(stream), ())
        except exceptions.InvalidPathError:
            raise UsageError(
                f"{self.shown}/{below}: found a key with a control character or an empty part; "
                "expected keys that are paths; rename it",
                code=Refusal.BAD_NAME,
            ) from None
        except _ANY as failure:
            raise self._said(below, failure) from None

    def head(self, key: str) -> Head | None:
        """Size, etag and tags of an object; None when it is not there (see `FilePlace`)."""
        return self._pace.patiently(lambda: self._head(key))

    def _head(self, key: str) -> Head | None:
        try:
            told = obstore.get(self._store, self._full(key), options={"head": True})
        except _NOT_THERE:
            return None
        except _ANY as failure:
            raise self._said(key, failure) from None
        tags = {str(name).lower(): str(text) for name, text in told.attributes.items()}
        return Head(told.meta["size"], told.meta["e_tag"] or "", tags)

    def read_range(self, key: str, start: int, length: int, etag: str | None = None) -> bytes:
        """Some bytes of an object (see `FilePlace`)."""
        return self._pace.patiently(lambda: self._read(key, start, length, etag))

    def _read(self, key: str, start: int, length: int, etag: str | None) -> bytes:
        if length == 0:
            return b""  # a range of nothing cannot be asked for
        options: Any = {"range": (start, start + length)}
        if etag is not None:
            options["if_match"] = etag
        try:
            return bytes(obstore.get(self._store, self._full(key), options=options).bytes())
        except _NOT_THERE:
            raise FileNotFoundError(key) from None
        except exceptions.PreconditionError:
            raise changed(self.shown, key) from None
        except _ANY as failure:
            raise self._said(key, failure) from None

    def create(self, key: str, content: Content, tags: Mapping[str, str]) -> Written:
        """Make an object that is not there (see `FilePlace`)."""
        return self._put(key, content, tags, "create")

    def replace_if(self, key: str, content: Content, etag: str, tags: Mapping[str, str]) -> Written:
        """Replace an object that is as it was known (see `FilePlace`)."""
        return self._put(key, content, tags, etag)

    def _put(self, key: str, content: Content, tags: Mapping[str, str], mode: str) -> Written:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size > _LARGEST_PUT:
            raise OutputError(
                f"{self.shown}/{key}: found {size} bytes; expected at most {_LARGEST_PUT}, which "
                "one request may have; give outputs a smaller rank",
                code=Refusal.FILE_TOO_LARGE,
            )
        token = secrets.token_hex(8)
        given = {**tags, ATTEMPT: token}
        return self._pace.patiently(lambda: self._put_once(key, content, given, mode))

    def _put_once(self, key: str, content: Content, tags: Mapping[str, str], mode: str) -> Written:
        how: Any = mode if mode == "create" else {"e_tag": mode}
        try:
            put = obstore.put(
                self._store,
                self._full(key),
                content,
                attributes=dict(tags),
                mode=how,
                use_multipart=False,
            )
        except _NEVER as failure:
            raise self._said(key, failure) from None
        except _ANY as failure:
            found = self._head(key)
            if found is not None and found.tags.get(ATTEMPT) == tags[ATTEMPT]:
                return Written(True, found.etag)
            if mode == "create" and found is not None:
                return Written(False, found.etag)
            if mode != "create" and (found is None or found.etag != mode):
                return Written(False, "" if found is None else found.etag)
            raise self._said(key, failure) from None
        return Written(True, put["e_tag"] or "")

    def _full(self, key: str) -> str:
        """The key in the bucket."""
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in key):
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

    def _said(self, key: str, failure: Exception) -> OutputError:
        """A failure in our own words: a refusal, or one after which it is tried again."""
        text = str(failure)
        code, status = _CODE.search(text), _STATUS.search(text)
        number = int(status[1]) if status else None
        reason = code[1] if code else f"status {number}" if number else type(failure).__name__
        place = f"{self.shown}/{key}"
        if reason in _OF_ONE:
            return OutputError(
                f"{place}: the store refused ({reason}); expected a shorter name or a smaller "
                "file; rename it, or give outputs a smaller rank",
                code=_OF_ONE[reason],
            )
        final = isinstance(failure, (*_NEVER, *_NOT_THERE))
        if number is not None and 400 <= number < 500 and number not in _LATER:
            final = final or not isinstance(failure, _CONDITION)
        if final:
            return OutputError(
                f"{place}: the store refused ({reason}); expected a bucket that is there and "
                "credentials that allow it; check the URL, the credentials and the clock",
                code=Refusal.CANNOT_WRITE,
            )
        return StoreBusy(
            f"{place}: the store gave no answer ({reason}); expected one within minutes; the same "
            "command goes on where this one ended",
            overloaded=number in _TOO_MUCH,
        )
