"""Google Cloud Storage as a place, by its JSON API and google-auth.

An object's generation is its etag: every write makes a new one. Each object is one `multipart`
request, which is done as a whole or not at all and keeps its condition; of a resumable upload the
parts are several, and emulators forget what it was begun with.

https://cloud.google.com/storage/docs/json_api/v1/objects, read in November 2026.
"""

import json
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import quote

import google.auth
import requests
import urllib3
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import HTTPAdapter

from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io.guarded import open_regular
from prolora_jax.io.places.pacing import Pace, StoreRefused
from prolora_jax.io.places.place import Content, Head, Listed, changed
from prolora_jax.io.places.store_place import (
    CREATE,
    LATER,
    Page,
    StorePlace,
    Unclear,
    has_control,
    why_none,
)

EMULATOR = "STORAGE_EMULATOR_HOST"
"""Variable that names a server to be asked instead, without credentials, as for every client."""

_SERVER = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_CONNECT_SECONDS = 10.0

_CONNECTIONS = 32
_PAGE = 1000
_PIECE = 2**20
_GENERATION = re.compile(r"[1-9][0-9]*")
_REASON = re.compile(r"[A-Za-z ]{1,60}")
_OF_ONE: Mapping[tuple[int, object], Refusal] = {
    (400, "invalid"): Refusal.BAD_NAME,
    (413, "uploadTooLarge"): Refusal.FILE_TOO_LARGE,
}
"""What is said of one object, and not of all."""

_NO_ANSWER = (requests.RequestException, urllib3.exceptions.HTTPError, GoogleAuthError)


class GooglePlace(StorePlace):
    """A prefix of a bucket of Google Cloud Storage.

    Args:
        shown: the place in words, without credentials.
        bucket: its name.
        pace: of all requests.
        prefix: of every key, without slashes at its ends.
    """

    def __init__(self, shown: str, bucket: str, pace: Pace, prefix: str = ""):
        super().__init__(shown, pace, prefix)
        host = os.environ.get(EMULATOR, "").rstrip("/")
        self._emulated = bool(host)
        self._server = f"http://{host}" if host and "://" not in host else host or _SERVER
        self._objects = f"b/{quote(bucket, safe='')}/o"
        self._lock = threading.Lock()

    @cached_property
    def _session(self) -> AuthorizedSession:
        """Made by the first request: looking for credentials may ask the machine's own server."""
        found: Any = AnonymousCredentials() if self._emulated else google.auth.default([_SCOPE])[0]
        session = AuthorizedSession(found)
        adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS)
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    def _page(self, below: str, within: str, behind: str | None) -> Page:
        asked: dict[str, str | int] = {
            "maxResults": _PAGE,
            "fields": "items(name,size,generation),nextPageToken",
        }
        asked |= {"prefix": f"{within}/"} if within else {}
        asked |= {"pageToken": behind} if behind else {}
        status, content, _ = self._ask(below, "GET", f"/storage/v1/{self._objects}", asked)
        if status != 200:
            raise self._said(below, status, content)
        told, listed = json.loads(content), []
        for one in told.get("items", ()):
            key = self._short(one["name"])
            # Consoles make empty objects for folders, this one's own among them: no files.
            if key and not key.endswith("/"):
                if not all(key.split("/")) or has_control(key):
                    raise self._no_path(below)
                listed.append(Listed(key, int(one["size"]), one["generation"]))
        return listed, told.get("nextPageToken")

    def _head(self, key: str) -> Head | None:
        asked = {"fields": "size,generation,metadata"}
        status, content, _ = self._ask(key, "GET", self._path(key), asked)
        if status == 404:
            return None
        if status != 200:
            raise self._said(key, status, content)
        told = json.loads(content)
        return Head(int(told["size"]), told["generation"], told.get("metadata", {}))

    def _read(self, key: str, start: int, length: int, etag: str | None) -> bytes:
        asked = {"alt": "media"} | ({} if etag is None else {"ifGenerationMatch": etag})
        part = {"Range": f"bytes={start}-{start + length - 1}"}
        status, content, told = self._ask(key, "GET", self._path(key), asked, headers=part)
        if status == 404:
            raise FileNotFoundError(key)
        # An emulator ignores the condition, and says what it gives.
        if status == 412 or (etag is not None and told.get("X-Goog-Generation", etag) != etag):
            raise changed(self.shown, key)
        if status == 416:
            return b""
        if status == 200:
            return content[start : start + length]
        if status != 206:
            raise self._said(key, status, content)
        return content

    def _write(self, key: str, content: Content, tags: Mapping[str, str], known: str) -> str:
        if known != CREATE and not _GENERATION.fullmatch(known):
            raise Unclear(self._refused(key, "a condition of another kind of place"))
        asked = {
            "uploadType": "multipart",
            "name": self._full(key),
            "ifGenerationMatch": "0" if known == CREATE else known,
            "fields": "generation",
        }
        body = _Upload(content, tags)
        path, headers = f"/upload/storage/v1/{self._objects}", {"Content-Type": body.kind}
        try:
            status, told, _ = self._ask(key, "POST", path, asked, headers=headers, data=body)
        except OutputError as failure:
            raise Unclear(failure) from None
        if status != 200:
            said = self._said(key, status, told)
            raise said if status in {401, 403} else Unclear(said)
        return json.loads(told)["generation"]

    def _path(self, key: str) -> str:
        return f"/storage/v1/{self._objects}/{quote(self._full(key), safe='')}"

    def _ask(
        self, key: str, method: str, path: str, asked: Mapping[str, str | int], **how: Any
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, bytes and headers of an answer."""
        # As they are kept: what was stored compressed would else come in other bytes than listed.
        headers = {"Accept-Encoding": "gzip", **how.pop("headers", {})}
        try:
            with self._lock:
                session, times = self._session, (_CONNECT_SECONDS, self._pace.longest_answer)
            with session.request(
                method,
                self._server + path,
                params=asked,
                headers=headers,
                timeout=times,  # pyright: ignore[reportArgumentType]
                stream=True,
                **how,
            ) as answer:
                media = "alt" in asked and answer.status_code < 300
                content = answer.raw.read(decode_content=not media)
                return answer.status_code, content, answer.headers
        except DefaultCredentialsError:
            raise StoreRefused(
                f"{self.shown}: found no credentials for Google's store; expected some; use "
                "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
            ) from None
        except RefreshError as failure:
            if not failure.retryable:
                raise self._refused(key, "RefreshError", 401) from None
            raise self._no_answer(key, "RefreshError", None) from None
        except _NO_ANSWER as failure:
            reason = why_none(str(failure)) or type(failure).__name__
            raise self._no_answer(key, reason, None) from None

    def _said(self, key: str, status: int, content: bytes) -> OutputError:
        """A failure in our own words: a refusal, or one after which it is tried again."""
        try:
            told = json.loads(content)["error"]["errors"][0]["reason"]
        except (ValueError, LookupError, TypeError):
            told = None
        words = isinstance(told, str) and _REASON.fullmatch(told)
        reason = f"status {status}" + (f", {told}" if words else "")
        if key and (status, told) in _OF_ONE:
            return self._refused_one(key, reason, _OF_ONE[status, told])
        if 400 <= status < 500 and status not in {*LATER, 412}:
            return self._refused(key, reason, status)
        return self._no_answer(key, reason, status)


class _Upload:
    """An object and its tags as the body of one request, which may be sent more than once.

    Args:
        content: of the object.
        tags: to be kept with it.
    """

    def __init__(self, content: Content, tags: Mapping[str, str]):
        mark = secrets.token_hex(24)
        self.kind = f'multipart/related; boundary="{mark}"'
        about = json.dumps({"metadata": dict(tags)})
        self._before = (
            f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{about}\r\n"
            f"--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._content, self._behind = content, f"\r\n--{mark}--\r\n".encode()
        self._size = len(content) if isinstance(content, bytes) else content.stat().st_size

    def __len__(self) -> int:
        return len(self._before) + self._size + len(self._behind)

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        if isinstance(self._content, bytes):
            yield self._content
        else:
            with open_regular(self._content) as file:
                while piece := file.read(_PIECE):
                    yield piece
        yield self._behind
