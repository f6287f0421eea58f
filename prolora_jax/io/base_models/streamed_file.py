"""A safetensors checkpoint read by ordinary reading, whole tensors or piece by piece.

A mapped file stays resident as far as it was touched, which for a base model is gigabytes, and one
that is cut off while it is read ends the process. Here only what is asked for is in memory.
"""

import os
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from threading import Lock

import numpy as np

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.tensors import TensorFile
from prolora_jax.io.file_state import FileState
from prolora_jax.io.guarded import open_regular

PIECE_BYTES = 4 * 2**20
"""What is read at a time where a weight is only passed over: it stays in the processor's cache."""


class StreamedFile:
    """An open safetensors file of a base model.

    Attributes:
        path: the file.
        keys: names of its tensors, sorted.
        metadata: header strings.
        state: which file was opened, and when it was last changed.
    """

    def __init__(self, path: Path):
        """Open a file and read its header.

        Raises:
            UsageError: there is no such file, or it cannot be opened.
            BaseModelError: it is no intact safetensors file, or changed while it was opened.
        """
        self.path = path
        self._header = TensorFile(path, error=BaseModelError, packed=True)
        self.keys = self._header.keys
        self.metadata = self._header.metadata
        with open_regular(path) as file:
            descriptor = os.dup(file.fileno())
            status = os.fstat(descriptor)
        # Open for as long as this object is there, which nobody closes.
        self._file = FileIO(descriptor, closefd=False)
        weakref.finalize(self, os.close, descriptor)
        self._reading = Lock()
        self.state = FileState.of(path, status)
        if self._header.identity != (status.st_ino, status.st_mtime_ns, status.st_size):
            raise self._changed()

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._header.shape(key)

    def dtype(self, key: str) -> np.dtype:
        """Dtype of a tensor, from the header."""
        return self._header.placeholder(key).dtype

    def require_weight(self, key: str) -> None:
        """Raise unless the dtype of a tensor is one for weights."""
        self._header.require_weight(key)

    def tensor(self, key: str) -> np.ndarray:
        """Read one tensor, in its stored dtype.

        Raises:
            BaseModelError: its dtype is not supported, or its bytes are not there any more.
        """
        array = np.empty(self.shape(key), self.dtype(key))
        start, _ = self._header.place(key)
        self._read(start, array.reshape(-1).view(np.uint8))
        return array

    def elements(self, key: str, first: int, end: int) -> np.ndarray:
        """Some numbers of one tensor, flat and row by row, in its stored dtype.

        Args:
            key: of the tensor.
            first: which number is the first.
            end: the one behind the last.

        Raises:
            BaseModelError: as `tensor`.
        """
        array = np.empty(end - first, self.dtype(key))
        start, _ = self._header.place(key)
        self._read(start + first * array.itemsize, array.view(np.uint8))
        return array

    def pieces(self, key: str, first: int, end: int) -> Iterator[memoryview]:
        """The bytes of some numbers of one tensor, in one small buffer that is filled again.

        Args:
            key: of the tensor.
            first: which number is the first.
            end: the one behind the last.

        Yields:
            A view of the buffer, good until the next one.

        Raises:
            BaseModelError: as `tensor`.
        """
        size = self.dtype(key).itemsize
        start = self._header.place(key)[0]
        at, stop = start + first * size, start + end * size
        buffer = np.empty(min(PIECE_BYTES, stop - at), np.uint8)
        while at < stop:
            piece = buffer[: min(PIECE_BYTES, stop - at)]
            self._read(at, piece)
            yield piece.data
            at += len(piece)

    def _read(self, start: int, into: np.ndarray) -> None:
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
            raise self._changed()

    def _changed(self) -> BaseModelError:
        return BaseModelError(
            f"{self.path}: changed while it was read; expected a file that nobody writes; try "
            f"again when it is whole",
            code=Refusal.CHANGED,
        )
