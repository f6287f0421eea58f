"""Tensors beside plain pairs that no projection moves: biases, norms, blobs of zeros.

They are no reason to refuse the pairs. What they are is told by the end of a key; whether they
have a layer in another base model is decided where a migration is planned.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion, Part
from prolora_jax.adapters.algorithms.foreign import algorithm_of
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER, module_path
from prolora_jax.architectures.llm.layouts import stored_in_out

# What a vector is added to, by the end of its key.
_ADDED: Mapping[str, Part] = {
    ".diff_b": "bias",
    ".b_norm": "bias",
    ".w_norm": "weight",
    ".diff": "weight",
}
_LORA_BIAS = ".lora_B."
_TOKEN_ROWS = re.compile(r"(.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?")
_WHOLE = (".modules_to_save.", ".original_module.")
_WHOLE_PARTS = frozenset({"layer", "saved"})
# Levels between a layer and its tensors.
_LEVELS = (*_WHOLE, ".base_layer.")


def companion_of(key: str, array: np.ndarray, *, outline: bool) -> Companion | None:
    """What a tensor beside the pairs is; None where it may be a reason to refuse the file.

    Args:
        key: no part of a pair.
        array: the tensor.
        outline: whether the numbers stand for others and say nothing.

    Returns:
        A companion: a vector that is added to a bias or to a norm's weight; a whole layer, of
        peft's `modules_to_save`; whole rows of an embedding, of its `trainable_token_indices`; or
        a tensor without effect.
    """
    rows = _TOKEN_ROWS.fullmatch(key)
    if rows is not None and array.ndim == 2 and array.size:
        return Companion(key, module_path(rows[1]), "rows", array)
    name, part = _split(key)
    if array.size == 0:
        return Companion(key, name, "none", array)
    if part is not None and array.ndim == 1:
        none = not outline and not array.any()
        return Companion(key, name, "none" if none else part, array)
    if any(piece in key for piece in _WHOLE) or _is_whole_layer(key):
        return Companion(key, name, "layer", array)
    additive = algorithm_of(key) in {None, "full-diff", "LoRA-bias"}
    if additive and not key.endswith(".set_weight") and not outline and not array.any():
        return Companion(key, name, "none", array)
    return None


def _split(key: str) -> tuple[str, Part | None]:
    for end, part in _ADDED.items():
        if key.endswith(end):
            return module_path(key.removesuffix(end)), part
    name, found, rest = key.rpartition(_LORA_BIAS)
    if found and rest.rpartition(".")[2] == "bias" and rest.count(".") <= 1:
        return module_path(name), "bias"
    for piece in _LEVELS:
        name, found, _ = key.partition(piece)
        if found:
            return module_path(name), None
    return module_path(key.rpartition(".")[0] or key), None


def _is_whole_layer(key: str) -> bool:
    """As peft saves what `modules_to_save` names: the layer's own tensors under its wrapper."""
    own = key.endswith((".weight", ".bias")) and algorithm_of(key) is None
    return own and PEFT_WRAPPER in key and ".lora" not in key


def is_scaled(companion: Companion) -> bool:
    """Whether the scale of its module counts for it: the bias of a factor, `lora_B.bias`."""
    return companion.part == "bias" and _LORA_BIAS in companion.key


def without_copies(
    adapter: Adapter,
    matrix: Callable[[str], np.ndarray],
    bias: Callable[[str], np.ndarray | None],
) -> Adapter:
    """An adapter whose whole layers are marked as what they are where they are the base model's.

    peft puts a copy of the embedding and of the head into a file whose adapter is for them.

    Args:
        adapter: resolved.
        matrix: the base model's weights, `(out, in)`, float32.
        bias: its biases; None of a layer without one.

    Returns:
        The adapter; copies, bit for bit after a cast to the file's dtype, have no effect.
    """
    if adapter.outline or all(c.part not in _WHOLE_PARTS for c in adapter.companions):
        return adapter

    def as_told(companion: Companion) -> Companion:
        whole = companion.part in _WHOLE_PARTS
        own = _of_base(companion, matrix, bias) if whole else None
        if own is None or own.shape != companion.array.shape:
            return companion
        with np.errstate(over="ignore"):  # infinite there is not equal to a finite number
            same = np.array_equal(own.astype(companion.array.dtype), companion.array)
        return replace(companion, part="none") if same else companion

    return replace(adapter, companions=tuple(map(as_told, adapter.companions)))


def _of_base(
    companion: Companion,
    matrix: Callable[[str], np.ndarray],
    bias: Callable[[str], np.ndarray | None],
) -> np.ndarray | None:
    """What the base model has in the place of a whole layer's tensor, as it is stored."""
    try:
        if companion.key.endswith(".bias"):
            return bias(companion.path)
        weight = matrix(companion.path)
    except KeyError:  # of a norm, say
        return None
    return weight.T if stored_in_out(companion.path) else weight
