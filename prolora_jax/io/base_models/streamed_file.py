"""A safetensors checkpoint read by ordinary reading, whole tensors or piece by piece.

A mapped file stays resident as far as it was touched, which for a base model is gigabytes, and one
that is cut off while it is read ends the process. Here only what is asked for is in memory.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prolora_jax.errors import BaseModelError
from prolora_jax.io.containers.open_file import OpenFile
from prolora_jax.io.containers.tensors import TensorFile

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
        self._file = OpenFile(path)
        self.state = self._file.state
        if self._header.identity != self._file.identity:
            raise self._file.changed()

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
        self._file.read(start, array.reshape(-1).view(np.uint8))
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
        self._file.read(start + first * array.itemsize, array.view(np.uint8))
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
            self._file.read(at, piece)
            yield piece.data
            at += len(piece)
