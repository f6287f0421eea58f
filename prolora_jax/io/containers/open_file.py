"""A file of a base model that stays open, read at any place by ordinary reading."""

import os
import weakref
from io import FileIO
from pathlib import Path
from threading import Lock

import numpy as np

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.file_state import FileState
from prolora_jax.io.guarded import open_regular


class OpenFile:
    """An open file; several threads may read it.

    Attributes:
        path: the file.
        state: which file was opened, and when it was last changed.
        identity: its inode, time of change and size.
    """

    def __init__(self, path: Path):
        """Open a file.

        Raises:
            OSError: there is none, or it may not be read.
        """
        self.path = path
        with open_regular(path) as file:
            descriptor = os.dup(file.fileno())
            status = os.fstat(descriptor)
        # Open for as long as this object is there, which nobody closes.
        self._file = FileIO(descriptor, closefd=False)
        weakref.finalize(self, os.close, descriptor)
        self._reading = Lock()
        self.state = FileState.of(path, status)
        self.identity = (status.st_ino, status.st_mtime_ns, status.st_size)

    def read(self, start: int, into: np.ndarray) -> None:
        """Fill an array with the bytes from `start` on.

        Args:
            start: the first byte.
            into: flat, of uint8.

        Raises:
            BaseModelError: they are not there any more.
        """
        wanted = memoryview(into.data)
        try:
            with self._reading:
                self._file.seek(start)
                while wanted and (count := self._file.readinto(wanted)):
                    wanted = wanted[count:]
        except OSError as failure:
            raise BaseModelError(
                f"{self.path}: cannot be read ({failure.strerror}); expected a disk that gives "
                f"what it holds; check the disk",
                code=Refusal.MISSING_FILE,
            ) from failure
        if wanted:
            raise self.changed()

    def changed(self) -> BaseModelError:
        """That the file is not what it was when it was opened."""
        return BaseModelError(
            f"{self.path}: changed while it was read; expected a file that nobody writes; try "
            f"again when it is whole",
            code=Refusal.CHANGED,
        )
