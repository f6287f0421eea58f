"""Writing a safetensors file tensor by tensor: the one place where such files are written.

The library's own writer is not used, for what was measured (safetensors 0.8.0): it holds all
tensors at once; it stores the buffer of a transposed view as it lies, which is wrong numbers; its
header strings come in an order that changes from call to call, so that the same content has other
bytes; and it leaves a `.tmp` file of its own behind when it is killed. In the tests the library
reads these files.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import BinaryIO

import ml_dtypes
import numpy as np

from prolora_jax.io.atomic import atomic_path
from prolora_jax.io.containers.safetensors_header import METADATA

_CODES = {
    **{np.dtype(f"float{bits}"): f"F{bits}" for bits in (16, 32, 64)},
    **{np.dtype(f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)},
    **{np.dtype(f"uint{bits}"): f"U{bits}" for bits in (8, 16, 32, 64)},
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
    np.dtype(ml_dtypes.float8_e5m2): "F8_E5M2",
    np.dtype(np.bool_): "BOOL",
}
_ALIGNMENT, _MAPPED_ALIGNMENT = 8, 64
"""Numbers start at a multiple of this in the file: as the library has it; where they are mapped.

XLA takes mapped numbers as they lie at multiples of 64, and copies others. Tensors follow each
other without gaps, so those behind one whose size is no multiple of it are copied all the same.
"""
_AT_ONCE = 512
"""Pieces for one call of the system, which takes at least 1,024."""
_LENGTH = 8
"""Bytes before the header that say how long it is."""


def write_streamed(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    make_tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file of one dtype that is to be mapped: `write_each`, aligned for it.

    Args:
        path: where to; an existing file is replaced.
        shapes: shape of every tensor by key; they are made and stored in this order.
        dtype: of all tensors.
        make_tensor: the tensor of a key; called once for each.
        metadata: header strings.

    Raises:
        OutputError: it cannot be written.
        ValueError: `make_tensor` gave another shape or dtype than was announced.
    """
    tables = {key: (shape, dtype) for key, shape in shapes.items()}
    write_each(path, tables, make_tensor, metadata, alignment=_MAPPED_ALIGNMENT)


def write_each(
    path: str | os.PathLike[str],
    tables: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    make_tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    alignment: int = _ALIGNMENT,
) -> None:
    """Write a safetensors file, whole or not at all, holding one tensor at a time.

    Args:
        path: where to; an existing file is replaced.
        tables: shape and dtype of every tensor by key; they are made and stored in this order.
        make_tensor: the tensor of a key; called once for each.
        metadata: header strings; they are stored in the order of their names.
        alignment: bytes; the first number's place in the file is a multiple of it.

    Raises:
        OutputError: it cannot be written.
        ValueError: `make_tensor` gave another shape or dtype than was announced, or there is no
            such dtype in the format.
    """
    unknown = {str(dtype) for _, dtype in tables.values() if dtype not in _CODES}
    if unknown:
        raise ValueError(f"{path}: found tensors of {sorted(unknown)}; safetensors has none such")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(tables, metadata or {}, alignment))
        for key, (shape, dtype) in tables.items():
            _write_tensor(file, key, make_tensor(key), shape, dtype)


def _header(
    tables: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    metadata: Mapping[str, str],
    alignment: int,
) -> bytes:
    return header_bytes(entries_text(tables), metadata, alignment)


def entries_text(tables: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    """What a header says of its tensors, as JSON without the braces around it.

    Args:
        tables: shape and dtype of every tensor by key, in the order of the file.
    """
    return json.dumps(dict(_entries(tables)), separators=(",", ":"))[1:-1]


def header_bytes(entries: str, metadata: Mapping[str, str], alignment: int = _ALIGNMENT) -> bytes:
    """The whole beginning of a file, its length in front.

    Args:
        entries: of `entries_text`.
        metadata: header strings; they are stored in the order of their names.
        alignment: bytes; the first number's place in the file is a multiple of it.
    """
    # Half of a surrogate pair, which JSON can spell, is no text for other readers.
    texts = {key: metadata[key].encode(errors="replace").decode() for key in sorted(metadata)}
    parts = [entries] if entries else []
    if texts:
        parts.insert(0, json.dumps({METADATA: texts}, separators=(",", ":"))[1:-1])
    text = f"{{{','.join(parts)}}}".encode()
    text += b" " * (-(_LENGTH + len(text)) % alignment)
    return len(text).to_bytes(_LENGTH, "little") + text


def write_pieces(path: str | os.PathLike[str], pieces: Sequence[bytes | memoryview]) -> str:
    """Write a file of pieces that lie apart, whole or not at all, without bringing them together.

    Args:
        path: where to; an existing file is replaced.
        pieces: C-contiguous, in their order; the first is the header.

    Returns:
        SHA-256 of the file's bytes.

    Raises:
        OutputError: it cannot be written.
    """
    digest = sha256()
    with atomic_path(path) as temporary, temporary.open("wb", buffering=0) as file:
        for start in range(0, len(pieces), _AT_ONCE):
            _write_all(
                file.fileno(), [memoryview(p).cast("B") for p in pieces[start : start + _AT_ONCE]]
            )
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()


def _write_all(descriptor: int, views: list[memoryview]) -> None:
    while views:
        written = os.writev(descriptor, views)
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def _entries(
    tables: Mapping[str, tuple[tuple[int, ...], np.dtype]],
) -> Iterator[tuple[str, dict[str, object]]]:
    start = 0
    for key, (shape, dtype) in tables.items():
        # Counted in Python's integers: a product of many axes must not wrap around.
        size = dtype.itemsize
        for axis in shape:
            size *= axis
        yield (
            key,
            {
                "dtype": _CODES[dtype],
                "shape": list(shape),
                "data_offsets": [start, start + size],
            },
        )
        start += size


def _write_tensor(
    file: BinaryIO, key: str, tensor: np.ndarray, shape: tuple[int, ...], dtype: np.dtype
) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{key}: made as {tensor.dtype.name} {tensor.shape}; announced as {dtype.name} {shape}"
        )
    # Contiguous first: the buffer of a transposed view would be stored in the wrong order. And as
    # bytes: NumPy hands out no buffer of bfloat16.
    file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
