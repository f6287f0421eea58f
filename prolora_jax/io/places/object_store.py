"""An S3 store as a place, by obstore."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import obstore
from obstore import exceptions

from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.place import Content, Head, Listed, changed
from prolora_jax.io.places.store_place import CREATE, LATER, Page, StorePlace, Unclear, why_none

_PAGE = 1000
"""Keys of one answer to a listing, S3's limit."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_OF_ONE = {
    "KeyTooLongError": Refusal.BAD_NAME,
    "InvalidObjectName": Refusal.BAD_NAME,
    "XMinioInvalidObjectName": Refusal.BAD_NAME,
    "InvalidURI": Refusal.BAD_NAME,
    "EntityTooLarge": Refusal.FILE_TOO_LARGE,
    "status 413": Refusal.FILE_TOO_LARGE,
    "status 414": Refusal.BAD_NAME,
}
"""What is said of one object, and not of all: a store's own limits may be lower than S3's."""

_ROLE = "/latest/api/token"
"""What is asked for credentials where the environment has none."""

_NO_CREDENTIALS = "no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"
_NO_ETAG = '"no such etag"'
_SURE_KEY = 255
"""Bytes of a key that every server takes."""

_NOT_THERE = (FileNotFoundError, exceptions.NotFoundError)
_FORBIDDEN = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_CONDITION = (exceptions.AlreadyExistsError, exceptions.PreconditionError)
# Of a missing bucket a store says the same as of a missing object.
_NEVER = (
    *_FORBIDDEN,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
)
_ANY = (exceptions.BaseError, OSError)


class ObjectPlace(StorePlace):
    """A prefix of a bucket of an S3 store.

    Args:
        shown: the place in words, without credentials.
        client: makes a store of obstore that gives a request up after so many seconds without a
            byte, without retries of its own: after them it cannot be told who won.
        pace: of all requests.
        prefix: of every key, without slashes at its ends.
    """

    def __init__(self, shown: str, client: Callable[[float], Any], pace: Pace, prefix: str = ""):
        super().__init__(shown, pace, prefix)
        self._client, self._longest = client, _SURE_KEY
        self._stores = {pace.longest_answer: client(pace.longest_answer)}

    @property
    def _store(self) -> Any:
        seconds = self._pace.longest_answer  # another one when it has answered
        if seconds not in self._stores:
            self._stores[seconds] = self._client(seconds)
        return self._stores[seconds]

    def require_name(self, key: str) -> None:
        """Refuse a name that the store does not take (see `FilePlace`).

        A server's own limit may be lower than S3's. One that has not yet taken a key of this length
        is asked to replace what is not there, which writes nothing.
        """
        length = len(self._full(key).encode())
        if length > self._longest:
            self.replace_if(key, b"", _NO_ETAG, {})
            self._longest = length

    def _page(self, below: str, within: str, behind: str | None) -> Page:
        page, more = list[Any](), False
        try:
            for part in obstore.list(self._store, within or None, offset=behind, chunk_size=_PAGE):
                page += part
                # What an empty one is, the key behind it says: it comes again with that.
                whole = [i for i, one in enumerate(page) if one["size"] and one["path"] != behind]
                more = len(part) == _PAGE and bool(whole)
                if more:
                    page = page[: whole[-1] + 1]
                    break
        except exceptions.InvalidPathError:
            raise self._no_path(below) from None
        except _ANY as failure:
            raise self._said(below, failure) from None
        # A key with a slash at its end lies behind itself, cut off as it is.
        page = [one for one in page if one["path"] != behind]
        # Consoles make empty objects for folders, this one's own among them, and the client cuts
        # the slash at their ends off: the first key below comes right behind.
        followed = [*[one["path"] for one in page], ""][1:]
        files = [
            Listed(self._short(one["path"]), one["size"], one["e_tag"] or "")
            for one, following in zip(page, followed, strict=True)
            if one["size"] or not following.startswith(f"{one['path']}/")
        ]
        return [file for file in files if file.key], page[-1]["path"] if more else None

    def _head(self, key: str) -> Head | None:
        try:
            told = obstore.get(self._store, self._full(key), options={"head": True})
        except _NOT_THERE:
            return None
        except _ANY as failure:
            raise self._said(key, failure) from None
        tags = {str(name).lower(): str(text) for name, text in told.attributes.items()}
        return Head(told.meta["size"], told.meta["e_tag"] or "", tags)

    def _read(self, key: str, start: int, length: int, etag: str | None) -> bytes:
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

    def _write(self, key: str, content: Content, tags: Mapping[str, str], known: str) -> str:
        how: Any = known if known == CREATE else {"e_tag": known}
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
            raise Unclear(self._said(key, failure)) from None
        return put["e_tag"] or ""

    def _said(self, key: str, failure: Exception) -> OutputError:
        """A failure in our own words: a refusal, or one after which it is tried again."""
        text = str(failure)
        if _ROLE in text:  # of a machine of Amazon's, which may be asked again
            return self._no_answer(key, _NO_CREDENTIALS, None)
        code, status = _CODE.search(text), _STATUS.search(text)
        number = int(status[1]) if status else None
        reason = code[1] if code else f"status {number}" if number else why_none(text)
        reason = reason or type(failure).__name__
        if reason in _OF_ONE:
            return self._refused_one(key, reason, _OF_ONE[reason])
        final = isinstance(failure, (*_NEVER, *_NOT_THERE))
        if number is not None and 400 <= number < 500 and number not in LATER:
            final = final or not isinstance(failure, _CONDITION)
        if not final:
            return self._no_answer(key, reason, number)
        forbidden = isinstance(failure, _FORBIDDEN)
        return self._refused(key, reason, 403 if forbidden else number)
