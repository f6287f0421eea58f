"""GGUF files: tensors in blocks of 32 or 256 numbers, unpacked by the `gguf` package.

The package's own reader builds every string of the vocabulary and maps the file; here its header is
read by `gguf_header`, tensors by ordinary reading, and blocks unpacked by `gguf.quants.dequantize`.
"""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.open_file import OpenFile
from prolora_jax.io.containers.packed.gguf_header import GgufTensor, read_gguf_header
from prolora_jax.io.containers.packed.packed_weight import FLOATS, PackedWeight, StoredTensor

_PLAIN = {
    **{"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)},
    **{"BF16": np.dtype(ml_dtypes.bfloat16), "F64": np.dtype(np.float64)},
}
_PIECE_BYTES = 4 * 2**20


class GgufFile:
    """An open GGUF file; a tensor in blocks is stored as their bytes.

    Attributes:
        path: the file.
        keys: names of its tensors.
        values: what its header says; see `GgufHeader`.
        state: which file was opened, and when it was last changed.
    """

    def __init__(self, path: Path):
        """Open a file and read its header.

        Raises:
            BaseModelError: it is no whole GGUF file, or the `gguf` package is not installed.
        """
        self.path = path
        try:
            header = read_gguf_header(path)
            self._file = OpenFile(path)
        except OSError as failure:
            raise BaseModelError(
                f"{path}: cannot be read ({failure.strerror}); check the disk",
                code=Refusal.MISSING_FILE,
            ) from failure
        self.state = self._file.state
        self.values = header.values
        self._tensors = header.tensors
        self.keys: tuple[str, ...] = tuple(header.tensors)
        for key, tensor in header.tensors.items():
            self._require_whole(key, tensor)

    def _require_whole(self, key: str, tensor: GgufTensor) -> None:
        name, block, width = _kind(tensor.kind)
        columns = tensor.shape[-1] if tensor.shape else 0
        if name is None or columns == 0 or columns % block:
            raise self._bad(
                f"{key}: found type {name or tensor.kind} in shape {tensor.shape}",
                "a type that the gguf package knows, in whole blocks",
            )
        end = tensor.start + math.prod(tensor.shape) // block * width
        if end > self.state.size:
            raise BaseModelError(
                f"{self.path}: {key}: found {self.state.size} bytes of at least {end}; expected a "
                f"whole GGUF file; fetch it again",
                code=Refusal.TRUNCATED,
            )

    def _bad(self, found: str, expected: str) -> BaseModelError:
        return BaseModelError(
            f"{self.path}: {found}; expected {expected}; install a newer gguf "
            f"(pip install 'prolora_jax[gguf]'), or give the model in another type",
            code=Refusal.UNSUPPORTED_DTYPE,
        )

    def weight(self, key: str) -> PackedWeight:
        """A tensor as the floats that it stands for; nothing is read.

        Raises:
            BaseModelError: the gguf package does not unpack its type.
        """
        tensor = self._tensors[key]
        name, block, width = _kind(tensor.kind)
        stored = StoredTensor(self, key)
        if name in _PLAIN:
            shape, dtype = tensor.shape, _PLAIN[name]
            parts = {"weight": stored}
            return PackedWeight(
                f"GGUF {name}", parts, shape, dtype, stored.numbers, 1, True, is_plain=True
            )
        if not _is_unpacked(tensor.kind):
            raise self._bad(f"{key}: found type {name}", "one that the gguf package unpacks")

        def unpack(first: int, end: int) -> np.ndarray:
            held = stored.numbers(first // block * width, end // block * width)
            return _dequantize(held, tensor.kind)

        return PackedWeight(
            *(f"GGUF {name}", {"weight": stored}, tensor.shape, FLOATS["float32"], unpack, block),
            is_linear=True,
        )

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor of floats; how many bytes one in blocks has."""
        tensor = self._tensors[key]
        name, block, width = _kind(tensor.kind)
        size = math.prod(tensor.shape) // block * width
        return tensor.shape if name in _PLAIN else (size,)

    def dtype(self, key: str) -> np.dtype:
        """Dtype of a tensor of floats; bytes of one in blocks."""
        return _PLAIN.get(_kind(self._tensors[key].kind)[0] or "", np.dtype(np.uint8))

    def elements(self, key: str, first: int, end: int) -> np.ndarray:
        """Some numbers of a tensor of floats, or some bytes of one in blocks.

        Raises:
            BaseModelError: they are not there any more.
        """
        found = np.empty(end - first, self.dtype(key))
        start = self._tensors[key].start + first * found.itemsize
        self._file.read(start, found.view(np.uint8))
        return found

    def pieces(self, key: str, first: int, end: int) -> Iterator[memoryview]:
        """The bytes of some of `elements`, a few MB at a time.

        Yields:
            The next bytes.

        Raises:
            BaseModelError: they are not there any more.
        """
        step = _PIECE_BYTES // self.dtype(key).itemsize
        for start in range(first, end, step):
            yield self.elements(key, start, min(start + step, end)).view(np.uint8).data


@cache
def _gguf() -> Any:
    try:
        import gguf
    except ImportError as failure:
        raise BaseModelError(
            "GGUF files are read with the gguf package, which is not installed; "
            "pip install 'prolora_jax[gguf]'",
            code=Refusal.MISSING_LIBRARY,
        ) from failure
    return gguf


@cache
def _kind(number: int) -> tuple[str | None, int, int]:
    """Name of a type, numbers in a block, and bytes of one; no name of one that is not known."""
    gguf = _gguf()
    try:
        kind = gguf.GGMLQuantizationType(number)
        block, width = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        return None, 1, 1
    return kind.name, block, width


@cache
def _is_unpacked(number: int) -> bool:
    """Whether the package unpacks a type: that it has a name for it does not say so."""
    _, _, width = _kind(number)
    try:
        _dequantize(np.zeros(width, np.uint8), number)
    except NotImplementedError:
        return False
    return True


def _dequantize(held: np.ndarray, number: int) -> np.ndarray:
    gguf = _gguf()
    with np.errstate(all="ignore"):  # scales of any bytes; what is not finite is seen later
        return gguf.quants.dequantize(held, gguf.GGMLQuantizationType(number)).reshape(-1)
