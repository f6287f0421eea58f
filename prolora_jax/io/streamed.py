"""Writing a safetensors file tensor by tensor: never more than one of them in memory.

The library writes a file from a mapping that holds everything. A base model of real size is more
than that mapping should hold; its header, on the other hand, is known before any number is.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

from prolora_jax.io.atomic import atomic_path
from prolora_jax.io.header import METADATA

_CODES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
_ALIGNMENT = 64
"""Numbers start at a multiple of this in the file: XLA takes such as they are mapped.

Others it copies; the library pads headers to 8 only. Tensors follow each other without gaps, so
those behind one whose size is no multiple of this are copied all the same.
"""
_LENGTH = 8
"""Bytes before the header that say how long it is."""


def write_streamed(
    path: str | os.PathLike[str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    make_tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all, holding one tensor at a time.

    Args:
        path: where to; an existing file is replaced.
        shapes: shape of every tensor by key; they are made and stored in this order.
        dtype: of all tensors: a float, bfloat16 by `ml_dtypes`.
        make_tensor: the tensor of a key; called once for each.
        metadata: header strings.

    Raises:
        OutputError: it cannot be written.
        ValueError: `make_tensor` gave another shape or dtype than was announced.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(shapes, dtype, metadata or {}))
        for key, shape in shapes.items():
            _write_tensor(file, key, make_tensor(key), shape, dtype)


def _header(
    shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    entries |= _entries(shapes, dtype)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


def _entries(
    shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> Iterator[tuple[str, dict[str, object]]]:
    start = 0
    for key, shape in shapes.items():
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
