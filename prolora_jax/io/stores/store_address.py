"""Where a store lies: a local folder, or one that is this host's copy of a place."""

import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from platformdirs import user_cache_path

from prolora_jax.io.places.opening import is_url, open_place


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
        asked: a folder; or `s3://bucket/prefix`, or `file:///folder`, which many hosts have in
            common: then it is copied to a folder beside the usual one, as far as it is used. None:
            `$PROLORA_STORE`, else `prolora/bases` in the user's cache folder.

    Raises:
        UsageError: a URL has credentials in it, or is of no known kind, or a library is missing.
    """
    usual, told = user_cache_path("prolora") / "bases", os.environ.get("PROLORA_STORE")
    if told and not is_url(told):
        usual = Path(told)
    asked = asked or told
    if not asked:
        return StoreAddress(usual)
    if not is_url(asked):
        return StoreAddress(Path(asked))
    parts = urlsplit(asked)
    local = parts.scheme == "file" and not parts.netloc
    shared = Path(unquote(parts.path)) if local else asked
    # A folder of its own: what was computed here alone has other bytes than what all use.
    name = sha256(open_place(shared).shown.encode()).hexdigest()[:12]
    return StoreAddress(usual.with_name(f"{usual.name}-of-{name}"), shared)
