"""A lock that another process of this host may hold for long."""

import fcntl
import time
from collections.abc import Callable

_LOOK_SECONDS = 0.1


def lock_patiently(descriptor: int, sign: Callable[[], object] | None = None) -> None:
    """Wait for the exclusive lock of an open file or folder; it goes when that is closed.

    Args:
        descriptor: of the file or folder.
        sign: called each time that another process was found to hold it.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if sign is not None:
                sign()
            time.sleep(_LOOK_SECONDS)
        else:
            return
