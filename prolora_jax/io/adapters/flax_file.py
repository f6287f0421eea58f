"""Adapters and parameters in msgpack: the bytes of `flax.serialization`, without Flax.

The format is small: maps of names, and arrays as extension 1 with shape, dtype and bytes. Writing
and reading it here means that no file of somebody else's is handed to a reader without limits,
and that a conversion does not wait for JAX.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (imported for its effect: NumPy cannot name bfloat16 without it)
import msgspec
import numpy as np

from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.adapters.formats.keys import said_in
from prolora_jax.architectures.flax_trees import leaves, nested
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.containers.msgpack_values import require_few_values
from prolora_jax.io.containers.tensors import MAX_WHOLE_FILE
from prolora_jax.io.guarded import is_regular, open_regular, read_small

_NDARRAY = 1
_METADATA, _EXTRAS = "metadata", "extras"
_FLOATS_AND_INTEGERS = "fiuV"  # V: NumPy's kind for bfloat16


def is_flax_file(path: Path) -> bool:
    """Whether a file is msgpack: it starts as a map of names does, or is named so and no other."""
    if not is_regular(path):
        return False
    with open_regular(path) as file:
        head, size = file.read(9), os.fstat(file.fileno()).st_size
    if path.suffix == ".msgpack":
        return head[8:] != b"{" or int.from_bytes(head[:8], "little") > size - 8
    # A map of 1 to 15 entries whose first key is a text of 1 to 31 bytes; a safetensors header
    # starts at the ninth byte.
    starts = len(head) == 9 and 0x81 <= head[0] <= 0x8F and 0xA1 <= head[1] <= 0xBF
    return starts and head[8:] != b"{"


def read_flax(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read an adapter from msgpack; the base's own parameters around it are passed over.

    Args:
        path: a file of `save_adapter`, or of a tree with `lora-<adapter>` places in it.

    Returns:
        Tensors by key with `/` between the levels, and header strings.

    Raises:
        AdapterRefused: it cannot be read as such.
    """
    try:
        content = read_small(path, MAX_WHOLE_FILE)
        require_few_values(content)
        tree = msgspec.msgpack.decode(content, ext_hook=_array)
        tree = dict(tree.get("params", tree))
        metadata = {str(key): str(text) for key, text in tree.pop(_METADATA, {}).items()}
        extras = {f"{key}": array for key, array in leaves(tree.pop(_EXTRAS, {}))}
        found = dict(leaves(tree))
    except (
        *(OSError, msgspec.DecodeError, ValueError, TypeError, AttributeError, RecursionError),
    ) as failure:
        raise AdapterRefused(
            f"{path}: found no Flax msgpack ({' '.join(str(failure).split())[:200]}); expected a "
            f"map of names and arrays; fetch it again",
            code=Refusal.NOT_AN_ADAPTER,
        ) from None
    tensors = {key: leaf for key, leaf in found.items() if f"/{LORA}" in key} or found
    odd = [key for key, leaf in (tensors | extras).items() if not isinstance(leaf, np.ndarray)]
    if odd:
        raise AdapterRefused(
            f"{path}: found {odd[0]}, which is no array; expected arrays; fetch it again",
            code=Refusal.UNKNOWN_KEYS,
        )
    return tensors | extras, said_in(metadata)


def write_flax(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write an adapter as msgpack, whole or not at all.

    Args:
        path: where to.
        tensors: from `formats.dump` for format `flax`.
        metadata: header strings.
    """
    tree: dict[str, Any] = nested({key: a for key, a in tensors.items() if f"/{LORA}" in key})
    extras = {key: array for key, array in tensors.items() if f"/{LORA}" not in key}
    tree |= {_EXTRAS: extras} if extras else {}
    tree |= {_METADATA: dict(metadata)} if metadata else {}
    write_tree(path, tree)


def write_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Write named arrays as msgpack, byte for byte as `flax.serialization.to_bytes` does.

    Args:
        path: where to.
        tree: nested dictionaries of arrays of less than 1 GB each, which Flax would cut, and texts.
    """
    atomic.write_bytes(path, msgspec.msgpack.encode(_packed(tree)))


def _packed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _packed(value[key]) for key in sorted(value)}  # as Flax does
    if isinstance(value, np.ndarray):
        content = (value.shape, value.dtype.name, value.tobytes("C"))
        return msgspec.msgpack.Ext(_NDARRAY, msgspec.msgpack.encode(content))
    return value


def _array(code: int, content: memoryview) -> np.ndarray:
    if code not in {_NDARRAY, 3}:  # 3: a NumPy scalar, in the same form
        raise ValueError(f"extension {code}")
    if len(content) < 2 or content[0] != 0x93 or not 0x90 <= content[1] < 0xA0:
        # Before it is read: of a list as long as the file, every number would become an object.
        raise ValueError("an array without a shape")
    shape, name, buffer = msgspec.msgpack.decode(content, type=tuple[list[int], str, bytes])
    dtype = np.dtype(name)
    if dtype.kind not in _FLOATS_AND_INTEGERS or min(shape, default=0) < 0:
        raise ValueError(f"dtype {name}, shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(buffer):
        raise ValueError(f"{len(buffer)} bytes for {name} {shape}")
    return np.frombuffer(buffer, dtype).reshape(shape)
