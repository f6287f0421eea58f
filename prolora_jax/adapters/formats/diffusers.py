"""Diffusers' keys: `unet.<dotted path>.lora_A.weight` and `.lora_B.weight`, scale 1."""

import logging

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.errors import AdapterRefused, Refusal

_log = logging.getLogger(__name__)


def dump_tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """Tensors under diffusers keys, one suffix family for all, each scale multiplied into `up`.

    Diffusers decides by the first key how to read the rest, so the families must not be mixed.

    Args:
        adapter: resolved.

    Returns:
        Tensors by key; extras unchanged, but for alphas without a module, which have no effect
        and which diffusers refuses.

    Raises:
        AdapterRefused: a scaled factor does not fit its dtype.
    """
    tensors = {}
    for module in adapter.modules:
        tensors[f"{module.path}.lora_A.weight"] = module.down
        tensors[f"{module.path}.lora_B.weight"] = scaled_up(module, adapter.origin)
    extras = {key: a for key, a in adapter.extras.items() if not key.endswith(".alpha")}
    for key in adapter.extras.keys() - extras.keys():
        _log.warning("%s: %s belongs to no module; left out", adapter.origin, key)
    return tensors | extras


def scaled_up(module: LoraModule, origin: str) -> np.ndarray:
    """The up factor with the module's scale multiplied into it, in float32; same dtype.

    Args:
        module: any module.
        origin: the file, for messages.

    Raises:
        AdapterRefused: a number does not fit the dtype.
    """
    if module.scale == 1.0:
        return module.up
    wide = module.up.astype(np.promote_types(np.float32, module.up.dtype)) * module.scale
    with np.errstate(over="ignore"):  # looked at below
        up = wide.astype(module.up.dtype)
    if not np.isfinite(up).all():
        raise AdapterRefused(
            f"{origin}: {module.path}: scale {module.scale:g} times up, at most "
            f"{np.abs(wide).max():g}, does not fit {up.dtype.name}; expected finite numbers; "
            f"write a kohya format, which keeps the scale apart, or another dtype",
            code=Refusal.NON_FINITE,
        )
    return up
