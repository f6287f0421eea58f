"""Tensors beside plain pairs that no projection moves: biases, norms, blobs of zeros.

They are no reason to refuse the pairs. What they are is told by the end of a key; whether they
have a layer in another base model is decided where a migration is planned.
"""

from collections.abc import Mapping

import numpy as np

from prolora_jax.adapters.adapter import Companion, Part
from prolora_jax.adapters.algorithms.foreign import algorithm_of
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER, module_path

# What a vector is added to, by the end of its key.
_ADDED: Mapping[str, Part] = {
    ".diff_b": "bias",
    ".b_norm": "bias",
    ".w_norm": "weight",
    ".diff": "weight",
}
_LORA_BIAS = ".lora_B."
_WHOLE = (".modules_to_save.", ".original_module.")


def companion_of(key: str, array: np.ndarray, *, outline: bool) -> Companion | None:
    """What a tensor beside the pairs is; None where it may be a reason to refuse the file.

    Args:
        key: no part of a pair.
        array: the tensor.
        outline: whether the numbers stand for others and say nothing.

    Returns:
        A companion: a vector that is added to a bias or to a norm's weight; a whole layer, of
        peft's `modules_to_save`; or a tensor without effect.
    """
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
    for piece in _WHOLE:
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
