"""Diffusers' keys: `unet.<dotted path>.lora_A.weight` and `.lora_B.weight`, scale 1."""

import logging

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.architectures.clip.table import is_text_encoder

_log = logging.getLogger(__name__)


def dump_tensors(adapter: Adapter, *, old: bool = False) -> dict[str, np.ndarray]:
    """Tensors under diffusers keys, one suffix family for all.

    Diffusers decides by the first key how to read the rest, so the families must not be mixed.

    Args:
        adapter: resolved, every scale 1.
        old: the spelling before PEFT, in which attention layers are processors
            (`attn1.processor.to_q_lora.down.weight`): ComfyUI reads no other dotted one.

    Returns:
        Tensors by key; extras unchanged, but for alphas without a module, which have no effect
        and which diffusers refuses.
    """
    tensors = {}
    for module in adapter.modules:
        down, up = _old_names(module.path) if old else _names(module.path)
        tensors[down], tensors[up] = module.down, module.up
    extras = {key: a for key, a in adapter.extras.items() if not key.endswith(".alpha")}
    for key in adapter.extras.keys() - extras.keys():
        _log.warning("%s: %s belongs to no module; left out", adapter.origin, key)
    return tensors | extras


def _names(path: str) -> tuple[str, str]:
    return f"{path}.lora_A.weight", f"{path}.lora_B.weight"


def _old_names(path: str) -> tuple[str, str]:
    if is_text_encoder(path):
        stem = f"{path}.lora_linear_layer"
    elif ".attn" in path and ".to_" in path:
        stem = f"{path.removesuffix('.0').replace('.to_', '.processor.to_')}_lora"
    else:
        stem = f"{path}.lora"
    return f"{stem}.down.weight", f"{stem}.up.weight"
