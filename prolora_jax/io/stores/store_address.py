"""Where a store lies: a local folder, or one that is this host's copy of a place."""

import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from platformdirs import user_cache_path

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.places.opening import is_url, open_place, without_secrets


class StoreAddress(NamedTuple):
    """Where a store lies; travels by pickle.

    Attributes:
        folder: on this host.
        shared: URL or folder that many hosts have in common; None: there is none such.
    """

    folder: Path
    shared: str | Path | None = None

    @property
    def shown(self) -> str:
        """For people, without credentials."""
        return str(self.folder) if self.shared is None else open_place(self.shared).shown


def store_address(asked: str | None) -> StoreAddress:
    """Where a store lies that was asked for.

    Args:
        asked: a folder; or `s3://bucket/prefix`, `gs://bucket/prefix`, or `file:///folder`, which
            many hosts have in common: then it is copied to a folder beside the usual one, as far
            as it is used. None: `$PROLORA_STORE`, else `prolora/bases` in the user's cache folder.

    Raises:
        UsageError: a URL has credentials in it, or is of no known kind, or means no folder, or a
            library is missing.
    """
    usual, told = user_cache_path("prolora") / "bases", os.environ.get("PROLORA_STORE")
    if told and not is_url(told):
        usual = Path(told)
    asked = asked or told
    if not asked:
        return StoreAddress(usual)
    if not is_url(asked):
        return StoreAddress(Path(asked))
    shared = _folder(asked) if asked[:7].lower() == "file://" else asked
    # A folder of its own: what was computed here alone has other bytes than what all use.
    name = sha256(open_place(shared).shown.encode()).hexdigest()[:12]
    return StoreAddress(usual.with_name(f"{usual.name}-of-{name}"), shared)


def _folder(url: str) -> Path:
    """The folder that a URL of a file system means, if all of it means that."""
    told = url[len("file://") :].removeprefix("localhost")
    path, signs = unquote(told, errors="surrogateescape"), [sign for sign in "?#" if sign in told]
    found = None
    if signs:
        found = f"{signs[0]} in the URL; expected %{ord(signs[0]):X} where a folder's name has it"
    elif not told.startswith("/"):
        found = "the name of a host in the URL; expected a folder that this host sees"
    elif "\0" in path or not path.strip("/"):
        found = "no folder's name in the URL; expected one"
    if found is not None:
        raise UsageError(
            f"{without_secrets(url)}: found {found}; use file:///folder", code=Refusal.BAD_OPTION
        )
    return Path(path)
