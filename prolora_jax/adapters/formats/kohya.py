"""Kohya's keys: `lora_unet_<flat path>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

The block names are LDM's for SDXL and its children, diffusers' for SD 1 and 2; readers take both.
"""

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.keys import KOHYA_UNET
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.dit.spellings import said_component
from prolora_jax.architectures.naming import flat
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal


def dump_tensors(adapter: Adapter, spec: BaseModelSpec, *, ldm: bool) -> dict[str, np.ndarray]:
    """Tensors under kohya keys; alpha, where a module has one, as a float32 scalar.

    Args:
        adapter: resolved against `spec`.
        spec: the base model it is for.
        ldm: whether UNet blocks are named as in LDM.

    Returns:
        Tensors by key; extras unchanged.

    Raises:
        AdapterRefused: LDM has no name for a module.
    """
    tensors = {}
    for module in adapter.modules:
        name = module_name(module.path, spec, ldm, adapter.origin)
        tensors[f"{name}.lora_down.weight"] = module.down
        tensors[f"{name}.lora_up.weight"] = module.up
        if module.alpha is not None:
            tensors[f"{name}.alpha"] = np.asarray(module.alpha, np.float32)
    return tensors | dict(adapter.extras)


def module_name(path: str, spec: BaseModelSpec, ldm: bool, origin: str) -> str:
    """What a kohya file calls a module, `lora_unet_input_blocks_4_1_proj_in`.

    Args:
        path: dotted path with component; of a transformer, its original name behind that.
        spec: the base model it is for.
        ldm: whether UNet blocks are named as in LDM.
        origin: the file, for messages.

    Raises:
        AdapterRefused: LDM has no name for the module.
    """
    if is_text_encoder(path):
        component, _, rest = path.partition(".")
        number = component.removeprefix("text_encoder").removeprefix("_")
        if not number and (spec.is_sdxl_family or spec.layer_names.components):
            number = "1"
        return f"lora_te{number}_{flat(rest)}"
    if said_component(path) is not None:
        return KOHYA_UNET + flat(path.partition(".")[2])
    if not ldm:
        return KOHYA_UNET + spec.diffusers_flat(path)
    try:
        return KOHYA_UNET + spec.ldm_flat(path)
    except KeyError:
        raise AdapterRefused(
            f"{origin}: {path} has no name in LDM; expected a layer of an LDM UNet; write format "
            f"kohya-diffusers",
            code=Refusal.UNMATCHED_MODULES,
        ) from None
