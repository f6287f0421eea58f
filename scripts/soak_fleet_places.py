"""Places that `soak_fleet.py` has outputs in, looked at without the package's own code."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import obstore
from seaweed import BUCKET, Seaweed

RECEIPTS = ".prolora/receipts/"
REPORT = ".report.json"
NOT_OUTPUTS = ("manifest.sqlite", ".lock", ".prolora/")
UNFINISHED = ".prolora-tmp"

Identity = tuple[object, ...]


class Outputs(Protocol):
    """A place that runs write to.

    Attributes:
        url: of the place, as the command takes it.
    """

    url: str

    def identities(self, below: str = "") -> dict[str, Identity]:
        """Every key, with what changes when it is written anew."""
        ...

    def read(self, key: str) -> bytes:
        """What stands there."""
        ...


class FolderOutputs:
    """A folder.

    Args:
        folder: may not be there yet.
    """

    def __init__(self, folder: Path):
        self.url, self._folder = str(folder), folder

    def identities(self, below: str = "") -> dict[str, Identity]:
        """Every file below a key, with its inode and time."""
        found: dict[str, Identity] = {}
        for parent, _, names in os.walk(self._folder / below):
            for name in names:
                path = Path(parent, name)
                try:
                    told = path.stat()
                except FileNotFoundError:
                    continue  # it was being written
                key = path.relative_to(self._folder).as_posix()
                found[key] = (told.st_ino, told.st_mtime_ns)
        return found

    def read(self, key: str) -> bytes:
        """Content of a file."""
        return (self._folder / key).read_bytes()


class BucketOutputs:
    """A prefix of a bucket.

    Args:
        server: that has the bucket.
        prefix: without slashes at its ends.
    """

    def __init__(self, server: Seaweed, prefix: str):
        self.url, self._prefix = f"s3://{BUCKET}/{prefix}", prefix
        self.store = server.client()

    def identities(self, below: str = "") -> dict[str, Identity]:
        """Every object below a key, with its time."""
        pages = obstore.list(self.store, f"{self._prefix}/{below}".rstrip("/"), chunk_size=1000)
        cut = len(self._prefix) + 1
        return {
            str(one["path"])[cut:]: (one["e_tag"], one["last_modified"])
            for page in pages
            for one in page
        }

    def read(self, key: str) -> bytes:
        """Content of an object."""
        return bytes(obstore.get(self.store, f"{self._prefix}/{key}").bytes())


def upload(server: Seaweed, folder: Path, prefix: str) -> None:
    """Put all files of a folder into the bucket."""
    store = server.client()

    def put(path: Path) -> None:
        obstore.put(store, f"{prefix}/{path.relative_to(folder).as_posix()}", path)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, [path for path in folder.rglob("*") if path.is_file()]))


def prints(place: Outputs) -> dict[str, str]:
    """Digests of all that users see, by key; reports without where inputs and models are."""
    keys = [key for key in place.identities() if not key.startswith(NOT_OUTPUTS)]
    keys = [key for key in keys if UNFINISHED not in key]
    with ThreadPoolExecutor(8) as threads:
        return dict(
            sorted(zip(keys, threads.map(lambda key: _print(place, key), keys), strict=True))
        )


def _print(place: Outputs, key: str) -> str:
    content = place.read(key)
    if key.endswith(REPORT):
        told = json.loads(content)
        for party in ("input", "source", "target"):
            if isinstance(told.get(party), dict):
                del told[party]["location"]
            elif party in told:
                told[party] = Path(told[party]).name
        content = json.dumps(told, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def receipts_of(place: Outputs) -> list[dict[str, Any]]:
    """Every receipt, as it stands there."""
    keys = list(place.identities(RECEIPTS))
    with ThreadPoolExecutor(8) as threads:
        return [json.loads(text) for text in threads.map(place.read, keys) if text]
