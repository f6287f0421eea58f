"""Flax parameter trees on disk, presented as torch tensors: same keys, shapes and layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from prolora_jax.architectures.flax_trees import in_torch_layout, torch_key
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.msgpack_tree import Leaf

_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})


@runtime_checkable
class Tree(Protocol):
    """Named arrays in a container that reads them one by one."""

    path: Path

    @property
    def leaves(self) -> Mapping[tuple[str, ...], Leaf]:
        """The arrays by their place in the tree."""
        ...

    def read(self, place: tuple[str, ...]) -> np.ndarray:
        """One array, in its stored dtype."""
        ...


class FlaxFile:
    """A tree read as `tensors.TensorFile` reads a safetensors file.

    Attributes:
        path: the file or folder.
        keys: torch names of its tensors, sorted; of a tree without components the UNet's have
            `unet.` in front, a text encoder's nothing.
    """

    def __init__(self, tree: Tree):
        self.path = tree.path
        self._tree = tree
        keyed = ((torch_key(place), place) for place in tree.leaves)
        self._places = {key: place for key, place in keyed if key is not None}
        self.keys: tuple[str, ...] = tuple(sorted(self._places))

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor in torch layout."""
        place = self._places[key]
        # A scalar spread over the shape: axes are permuted, and nothing is allocated.
        return in_torch_layout(place[-1], np.broadcast_to(0, self._tree.leaves[place].shape)).shape

    def tensor(self, key: str) -> np.ndarray:
        """Read one tensor, in torch layout and its stored dtype."""
        place = self._places[key]
        return in_torch_layout(place[-1], self._tree.read(place))

    def require_weight(self, key: str) -> None:
        """Check, without reading a tensor, that its dtype is one for weights: floats.

        Raises:
            BaseModelError: its dtype is another one.
        """
        dtype = self._tree.leaves[self._places[key]].dtype
        if dtype not in _FLOATS:
            raise BaseModelError(
                f"{self.path}: array {'/'.join(self._places[key])} has dtype {dtype}; expected "
                f"float16, bfloat16, float32 or float64; convert the file to one of these",
                code=Refusal.UNSUPPORTED_DTYPE,
            )
