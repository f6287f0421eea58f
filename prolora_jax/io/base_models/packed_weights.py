"""Weights in few bits, read as if the file had their floats: same keys, shapes and layout."""

from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.architectures.llm.layouts import is_stored_in_out
from prolora_jax.io.base_models.streamed_file import StreamedFile
from prolora_jax.io.base_models.weight_file import WeightFile
from prolora_jax.io.containers.packed.fp8 import FILE_MARK, FP8_SCALED
from prolora_jax.io.containers.packed.gguf_file import GgufFile
from prolora_jax.io.containers.packed.mxfp4 import mxfp4_weights, parts_of
from prolora_jax.io.containers.packed.packed_weight import (
    PackedModule,
    PackedWeight,
    StoredTensor,
)
from prolora_jax.io.containers.packed.recognition import modules_in, packing_of, require_scales
from prolora_jax.io.containers.packed.scaled import FLOAT8
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.file_state import FileState
from prolora_jax.io.guarded import is_regular

Tensors = Mapping[str, tuple[WeightFile, str]]
"""Open file and key in it of every tensor, by its key with component."""


class PackedWeights:
    """Packed weights by key, and what stands beside them.

    Attributes:
        keys: of the weights, and of the tensors beside them.
    """

    def __init__(self, weights: Mapping[str, PackedWeight], beside: Tensors):
        self._weights = weights
        self._beside = beside
        self.keys: tuple[str, ...] = (*weights, *beside)

    def weight(self, key: str) -> PackedWeight:
        """A packed weight, which nothing was read of."""
        return self._weights[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor as a file of floats would have it."""
        if key not in self._weights:
            file, stored = self._beside[key]
            return file.shape(stored)
        shape = self._weights[key].shape
        return shape[::-1] if self._is_turned(key) else shape

    def dtype(self, key: str) -> np.dtype:
        """Dtype of a weight's floats."""
        return self._weights[key].dtype

    def tensor(self, key: str) -> np.ndarray:
        """One tensor, unpacked."""
        if key not in self._weights:
            file, stored = self._beside[key]
            return file.tensor(stored)
        weight = self._weights[key]
        whole = weight.numbers(0, weight.size).reshape(weight.shape)
        return whole.T if self._is_turned(key) else whole

    def elements(self, key: str, first: int, end: int) -> np.ndarray:
        """Some numbers of a weight that is `in_parts`, flat and row by row."""
        return self._weights[key].numbers(first, end)

    def in_parts(self, key: str) -> bool:
        """Whether a weight can be unpacked in parts."""
        return self._weights[key].step is not None and not self._is_turned(key)

    def require_weight(self, key: str) -> None:
        """Nothing: what is not floats is no packed weight."""

    def pieces(self, key: str) -> Iterator[memoryview | bytes]:
        """What a packed weight is made of: how it is packed, and the bytes of all its parts."""
        weight = self._weights[key]
        yield f"{weight.packing} {self._is_turned(key)} ".encode()
        for role in sorted(weight.parts):
            part = weight.parts[role]
            yield f"{role} {part.dtype.name} {part.shape} ".encode()
            yield from part.pieces()

    def state(self, key: str) -> FileState | None:
        """The state of the file that all parts of a weight are in; None where they are in two."""
        states = {_state(part) for part in self._weights[key].parts.values()}
        return states.pop() if len(states) == 1 else None

    def _is_turned(self, key: str) -> bool:
        """Whether a file of floats has the weight the other way round."""
        return self._weights[key].is_linear and is_stored_in_out(key)


def unpacked(tensors: Tensors, origin: str) -> dict[str, tuple[WeightFile, str]]:
    """The tensors as a file of floats would have them; nothing is read but small texts.

    Args:
        tensors: of a base model.
        origin: what to call it in messages.

    Returns:
        The same where nothing is packed. Otherwise packed weights stand where their floats would,
        and the tensors that they are made of are gone.

    Raises:
        BaseModelError: weights are packed in a way that is not read, or parts of them are missing.
    """
    stored = {
        key: StoredTensor(file, own)
        for key, (file, own) in tensors.items()
        if isinstance(file, StreamedFile)
    }
    settings = cache(_settings)
    weights: dict[str, PackedWeight] = {}
    gone, unscaled, scaled = set[str](), set[str](), None
    for name, ends in modules_in(stored).items():
        parts = {end: stored[key] for end, key in ends.items()}
        folder = next(iter(parts.values())).store.path.parent
        config = settings(folder) if len(parts) > 1 else {}
        module = PackedModule(name, origin, parts, config, _metadata(parts))
        packing = packing_of(module)
        if packing is not None:
            weights[f"{name}.weight"] = packing.open(module)
            gone |= {*ends.values()}
            scaled = scaled or (name if packing is FP8_SCALED else None)
        elif "weight" in parts and _is_cast(parts["weight"]):
            unscaled.add(name)
    for name, weight in mxfp4_weights(stored, origin):
        weights[name] = weight
        gone |= {*parts_of(name)}
    marks = {key for key in stored if key.rpartition(".")[2] == FILE_MARK}
    require_scales(origin, next(iter(marks), scaled), unscaled)
    if not weights:
        return {key: place for key, place in tensors.items() if key not in marks}
    beside = {
        key: place
        for key, place in tensors.items()
        if key not in gone and key.endswith((".bias", "_bias"))
    }
    view = PackedWeights(weights, beside)
    left = {key: place for key, place in tensors.items() if key not in gone | marks}
    return left | {key: (view, key) for key in view.keys}


def _state(part: StoredTensor) -> FileState | None:
    return part.store.state if isinstance(part.store, StreamedFile | GgufFile) else None


def _is_cast(weight: StoredTensor) -> bool:
    return weight.dtype.name in FLOAT8 and len(weight.shape) > 1


def _metadata(parts: Mapping[str, StoredTensor]) -> Mapping[str, str]:
    """Header strings of the files that a module's tensors are in."""
    stores = {id(part.store): part.store for part in parts.values()}
    return ChainMap(*(s.metadata for s in stores.values() if isinstance(s, StreamedFile)))


def _settings(folder: Path) -> Mapping[str, Any]:
    """What a folder's `config.json` says of quantisation; nothing where it says nothing."""
    file = folder / "config.json"
    if not is_regular(file):
        return {}
    try:
        config = read_json_document(file)
    except BadDocument:
        return {}
    found = config.get("quantization_config") if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}
