"""Reading and writing safetensors files, as NumPy arrays.

The library does the parsing. This module adds what a user needs when it fails: which file, what
it is instead, and what to do.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401 (imported for its effect: NumPy cannot name bfloat16 without it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prolora_jax.errors import ProloraError, Refusal, UsageError
from prolora_jax.io.atomic import atomic_path

READABLE_DTYPES = frozenset(
    {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
)

_PICKLE_REMEDY = "may run code when opened; convert it to safetensors in a sandbox and give that"
# First bytes of what people hold for a safetensors file.
_SIGNATURES = (
    (b"PK\x03\x04", Refusal.PICKLE, f"a zip archive (torch .pt or .ckpt), which {_PICKLE_REMEDY}"),
    (
        b"version https://git-lfs",
        Refusal.NOT_SAFETENSORS,
        "a git-lfs pointer; fetch the file itself with `git lfs pull`",
    ),
    (b"GGUF", Refusal.NOT_SAFETENSORS, "a GGUF file; convert it to safetensors"),
    (b"\x1f\x8b", Refusal.NOT_SAFETENSORS, "a gzip archive; unpack it"),
)
_PICKLE_PROTOCOLS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))


class TensorFile:
    """An open safetensors file; tensors are read one at a time, when asked for.

    Attributes:
        path: the file.
        keys: names of its tensors, sorted.
        metadata: header strings.
    """

    def __init__(self, path: str | os.PathLike[str], *, error: type[ProloraError]):
        """Open a file and read its header.

        Args:
            path: a safetensors file.
            error: what to raise when the file is bad: `AdapterRefused` or `BaseModelError`.

        Raises:
            UsageError: there is no such file, or it cannot be opened.
            ProloraError: (as `error`) it is no intact safetensors file.
        """
        self.path = Path(path)
        self._error = error
        _require_file(self.path)
        try:
            self._file = safe_open(self.path, framework="numpy")
        except (SafetensorError, OSError) as failure:
            code, found = _diagnose(self.path, failure)
            raise error(
                f"{self.path}: {found} (expected a safetensors file)", code=code
            ) from failure
        self.keys: tuple[str, ...] = tuple(self._file.keys())
        self.metadata: dict[str, str] = dict(self._file.metadata() or {})

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._file.get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """The dtype code of a tensor as the header has it, `F32` or `BF16`."""
        return self._file.get_slice(key).get_dtype()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by key."""
        return {key: self.shape(key) for key in self.keys}

    def tensor(self, key: str) -> np.ndarray:
        """Read one tensor, in its stored dtype.

        Raises:
            ProloraError: (as the reader's error) its dtype is not supported.
        """
        self.require_readable(key)
        return self._file.get_tensor(key)

    def require_readable(self, key: str) -> None:
        """Check a tensor's dtype without reading it.

        Raises:
            ProloraError: (as the reader's error) its dtype is not supported.
        """
        dtype = self.dtype(key)
        if dtype not in READABLE_DTYPES:
            raise self._error(
                f"{self.path}: tensor {key} has dtype {dtype}; expected F16, BF16, F32 or F64; "
                f"convert the file to one of these",
                code=Refusal.UNSUPPORTED_DTYPE,
            )


def read_tensors(
    path: str | os.PathLike[str], *, error: type[ProloraError]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a whole safetensors file.

    Args:
        path: a safetensors file.
        error: what to raise when the file is bad: `AdapterRefused` or `BaseModelError`.

    Returns:
        The tensors by key, sorted by key, and the header strings.

    Raises:
        UsageError: there is no such file, or it cannot be opened.
        ProloraError: (as `error`) it is no intact safetensors file of supported dtypes.
    """
    file = TensorFile(path, error=error)
    return {key: file.tensor(key) for key in file.keys}, file.metadata


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: where to; an existing file is replaced.
        tensors: arrays by key; bfloat16 ones by `ml_dtypes`.
        metadata: header strings.
    """
    # The library writes the buffer of an array whatever its strides: without this a transposed
    # view ends up as wrong numbers, and no error says so (formats.md 0.8).
    contiguous = {
        # ascontiguousarray gives a scalar an axis; the reshape takes it away again.
        key: np.ascontiguousarray(array).reshape(array.shape)
        for key, array in tensors.items()
    }
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata) if metadata else None)


def _require_file(path: Path) -> None:
    remedy = None
    if path.is_dir():
        remedy = "found a folder; expected a safetensors file; name the file in it"
    elif not path.exists():
        remedy = "no such file; check the path"
    elif not os.access(path, os.R_OK):
        remedy = "found a file that may not be read; check its permissions"
    if remedy is not None:
        raise UsageError(f"{path}: {remedy}", code=Refusal.MISSING_FILE)


def _diagnose(path: Path, failure: Exception) -> tuple[Refusal, str]:
    """What a file is that the library could not open."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if size == 0:
        return Refusal.TRUNCATED, "found an empty file; fetch it again"
    if head.startswith(_PICKLE_PROTOCOLS):
        return Refusal.PICKLE, f"found a pickle, which {_PICKLE_REMEDY}"
    for signature, code, found in _SIGNATURES:
        if head.startswith(signature):
            return code, f"found {found}"
    if head.lstrip()[:5].lower() in {b"<!doc", b"<html", b"<?xml"}:
        return (
            Refusal.NOT_SAFETENSORS,
            "found a web page; fetch the file itself, signed in if need be",
        )
    expected = _expected_size(path, size)
    if expected is not None and size < expected:
        return Refusal.TRUNCATED, f"found {size} bytes of {expected}; fetch it again"
    if expected is not None and size > expected:
        return (
            Refusal.NOT_SAFETENSORS,
            f"found {size - expected} bytes after the last tensor; fetch it again",
        )
    reason = " ".join(str(failure).split())
    return Refusal.NOT_SAFETENSORS, f"found no readable header ({reason}); fetch it again"


def _expected_size(path: Path, size: int) -> int | None:
    """How long the file should be according to its own header; None if that makes no sense."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            return 8
        if length > 100_000_000:  # the library's own limit
            return None
        header = file.read(length)
    if len(header) < length:
        return 8 + length if header.startswith(b"{") else None
    try:
        entries = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
        return 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
