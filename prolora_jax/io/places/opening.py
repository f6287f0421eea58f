"""URLs: which place one means, what is shown of it, and whether the place can be trusted.

Credentials come from where each client looks for them (environment, files, the machine's own
role) and never stand in a URL: URLs are shown, in logs, reports and messages.
"""

import errno
import os
import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from prolora_jax.errors import OutputError, Refusal, UsageError
from prolora_jax.io.places.local import LocalPlace
from prolora_jax.io.places.pacing import LONGEST_ANSWER, Pace, StoreRefused
from prolora_jax.io.places.place import FilePlace

PROBE = ".prolora/probe"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TIMES = {"timeout": f"{LONGEST_ANSWER:g}s", "connect_timeout": "10s"}


def is_url(place: str | Path) -> bool:
    """Whether this is a URL, and no path."""
    return _URL.match(str(place)) is not None


def without_secrets(url: str) -> str:
    """A URL as it may be shown: without user, password, query and fragment."""
    if not is_url(url):
        return url
    parts = _parts(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}".rstrip("/")


def open_place(place: str | Path, pace: Pace | None = None) -> FilePlace:
    """The place that a path or a URL means; nothing is asked of it yet.

    Args:
        place: a folder, `s3://bucket/prefix` or `gs://bucket/prefix`.
        pace: of requests to a store; one with the usual patience when None.

    Raises:
        UsageError: the URL has credentials or a query in it, or is of no kind that is known here,
            or a library is missing.
    """
    if not is_url(place):
        return LocalPlace(Path(place))
    url = str(place)
    parts, shown = _parts(url), without_secrets(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"{shown}: found a user, a password or a query in the URL; expected "
            "scheme://bucket/prefix, and credentials in the environment; leave them out",
            code=Refusal.BAD_OPTION,
        )
    opened = {"s3": _s3, "gs": _gs}.get(parts.scheme)
    if opened is None or not parts.netloc:
        raise UsageError(
            f"{shown}: found a URL of another kind; expected s3://bucket/prefix, "
            "gs://bucket/prefix, or a folder",
            code=Refusal.BAD_OPTION,
        )
    prefix = parts.path.strip("/")
    if prefix and not {"", ".", ".."}.isdisjoint(prefix.split("/")):
        raise UsageError(
            f"{shown}: found two slashes, . or .. in the URL; expected folders by their names; "
            "write it without",
            code=Refusal.BAD_OPTION,
        )
    # One name for one place, however many slashes it was written with: places are compared by it.
    shown = f"{parts.scheme}://{parts.netloc}/{prefix}".rstrip("/")
    return opened(shown, parts.netloc, prefix, pace or Pace())


def _parts(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # What it is stays unsaid: what cannot be taken apart may have a password anywhere.
        raise UsageError(
            f"{url.partition(':')[0]}://...: found a URL that cannot be taken apart; expected "
            "scheme://bucket/prefix; check its brackets",
            code=Refusal.BAD_OPTION,
        ) from None


def _s3(shown: str, bucket: str, prefix: str, pace: Pace) -> FilePlace:
    try:
        from obstore.store import S3Store

        from prolora_jax.io.places.object_store import ObjectPlace
    except ImportError:
        raise _missing(shown, "obstore", "fleet") from None
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # The region is asked for where nobody has said it, and servers of one's own have none.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config = {"aws_endpoint": endpoint} if endpoint else {}
    if region or endpoint:
        config["aws_region"] = region or "us-east-1"
    plain = {"allow_http": True} if endpoint and endpoint.startswith("http://") else {}

    def client(seconds: float) -> S3Store:
        times = {**_TIMES, "read_timeout": f"{1000 * seconds:.0f}ms"}
        return S3Store(
            bucket,
            config=config,  # pyright: ignore[reportArgumentType]
            client_options={**times, **plain},  # pyright: ignore[reportArgumentType]
            retry_config={"max_retries": 0},
        )

    return ObjectPlace(shown, client, pace, prefix)


def _gs(shown: str, bucket: str, prefix: str, pace: Pace) -> FilePlace:
    try:
        from prolora_jax.io.places.google_store import GooglePlace
    except ImportError:
        raise _missing(shown, "google-auth and requests", "gcs") from None
    return GooglePlace(shown, bucket, pace, prefix)


def _missing(shown: str, library: str, extra: str) -> UsageError:
    return UsageError(
        f"{shown}: cannot be opened without {library}; expected it installed; use pip install "
        f"'prolora_jax[{extra}]'",
        code=Refusal.MISSING_LIBRARY,
    )


def require_conditions(place: FilePlace) -> None:
    """Refuse a place to which many could not write: it lets two make one file.

    Args:
        place: where outputs go; a small file stays there.

    Raises:
        UsageError: it does, or gives other bytes than were asked for.
        OutputError: it does not answer.
    """
    place.create(PROBE, b"first", {})
    again = place.create(PROBE, b"again", {})
    other = place.replace_if(PROBE, b"other", '"no such etag"', {})
    found = place.head(PROBE)
    if again.ours or other.ours or found is None:
        raise UsageError(
            f"{place.shown}: let two writers make one file; expected a place that refuses the "
            "second; use another store (docs/fleet.md names some)",
            code=Refusal.CANNOT_WRITE,
        )
    if place.read_range(PROBE, 1, 3, found.etag) != b"irs":
        raise UsageError(
            f"{place.shown}: gave other bytes than were asked for; expected ranges of files; use "
            "another store (docs/fleet.md names some)",
            code=Refusal.CANNOT_WRITE,
        )


def is_forbidden(failure: OutputError) -> bool:
    """Whether a place has refused who asks, and not what was asked."""
    if isinstance(failure, StoreRefused):
        return failure.forbidden
    cause = failure.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
