"""GGUF files as base models: transformers' names, transformers' order of rows.

Diffusion transformers are in such files under the names that their authors gave them.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from prolora_jax.architectures.dit.layouts import transformers_in
from prolora_jax.architectures.llm.facts import gguf_head_sizes
from prolora_jax.architectures.llm.gguf_names import gguf_places
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.packed_weights import PackedWeights
from prolora_jax.io.containers.packed.gguf_file import GgufFile
from prolora_jax.io.containers.packed.packed_weight import PackedWeight


def open_gguf(path: Path) -> PackedWeights:
    """The weights of a GGUF file; only its header is read.

    Returns:
        Weights by transformers' keys; of a diffusion transformer by its authors' or diffusers'.

    Raises:
        BaseModelError: it is no whole GGUF file of a model that is known here.
    """
    file = GgufFile(path)
    kind, parts = file.values.get("general.type", "model"), file.values.get("split.count", 1)
    if kind != "model":
        raise BaseModelError(
            f"{path}: found a GGUF file of type {kind!r:.60}; expected a model; "
            f"give the base model",
            code=Refusal.UNREADABLE_BASE,
        )
    if isinstance(parts, int) and parts > 1:
        raise BaseModelError(
            f"{path}: found one of {parts} parts of a model; expected a whole one; put "
            f"them together (llama-gguf-split --merge)",
            code=Refusal.UNREADABLE_BASE,
        )
    if transformers_in(dict.fromkeys(file.keys, ())):
        return PackedWeights({key: file.weight(key) for key in file.keys}, {})
    places = gguf_places(str(path), file.keys, file.values)
    sizes = gguf_head_sizes(file.values)
    weights: dict[str, PackedWeight] = {}
    for key, (name, heads) in places.items():
        weight = file.weight(name)
        weights[key] = weight if heads is None else _in_halves(path, name, weight, heads, sizes)
    return PackedWeights(weights, {})


def _in_halves(
    path: Path, name: str, weight: PackedWeight, heads: int, sizes: tuple[tuple[str, int], ...]
) -> PackedWeight:
    """A weight whose rows are in pairs, with those of each head as two halves."""
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    size = rows // heads
    if rows != size * heads or size % 2:
        raise BaseModelError(
            f"{path}: {name}: found {rows} rows of {heads} heads; expected an even number of rows "
            f"for each; fetch the file again",
            code=Refusal.SHAPE_MISMATCH,
        )
    said = next(((what, own) for what, own in sizes if rows != heads * own), None)
    if said is not None:
        raise BaseModelError(
            f"{path}: {name}: found {rows} rows of {heads} heads, each of {said[1]} ({said[0]}); "
            f"expected {heads * said[1]}; fetch the file again",
            code=Refusal.SHAPE_MISMATCH,
        )

    def unpack(first: int, end: int) -> np.ndarray:
        pairs = weight.numbers(first, end).reshape(-1, size // 2, 2, columns)
        return pairs.swapaxes(1, 2).reshape(-1)

    packing = f"{weight.packing}, rows in pairs"
    return replace(weight, packing=packing, unpack=unpack, step=size * columns)
