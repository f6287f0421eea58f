"""ComfyUI's own names: `diffusion_model.<LDM path>`, `text_encoders.clip_l.transformer.<path>`.

Its loader takes kohya's flat names as well; of diffusers' dotted names it takes no attention layer
but in the oldest spelling. What its own extraction writes is this.
"""

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.components import COMFYUI_TEXT_ENCODERS, COMFYUI_UNET
from prolora_jax.architectures.clip.table import encoder_of, is_text_encoder
from prolora_jax.architectures.dit.spellings import said_component
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

# Two encoders may stand in the first place; which one it is decides about the name.
_NAMES = {"clip-l": "clip_l", "openclip-h": "clip_h", "openclip-bigg": "clip_g"}
_BY_COMPONENT = {component: name for name, component in reversed(COMFYUI_TEXT_ENCODERS.items())}


_PAIR = ("lora_down", "lora_up")
# Of a transformer: the spelling without an alpha that diffusers takes for most of them, too.
_TRANSFORMER_PAIR = ("lora_A", "lora_B")


def dump_tensors(adapter: Adapter, spec: BaseModelSpec) -> dict[str, np.ndarray]:
    """Tensors under ComfyUI's keys; alpha, where a module has one, as a float32 scalar.

    Args:
        adapter: resolved against `spec`.
        spec: the base model it is for.

    Returns:
        Tensors by key; extras unchanged.

    Raises:
        AdapterRefused: LDM has no name for a module.
    """
    tensors = {}
    for module in adapter.modules:
        name = module_name(module.path, spec, adapter.origin)
        down, up = _PAIR if said_component(module.path) is None else _TRANSFORMER_PAIR
        tensors[f"{name}.{down}.weight"], tensors[f"{name}.{up}.weight"] = module.down, module.up
        if module.alpha is not None:
            tensors[f"{name}.alpha"] = np.asarray(module.alpha, np.float32)
    return tensors | dict(adapter.extras)


def module_name(path: str, spec: BaseModelSpec, origin: str) -> str:
    """What ComfyUI calls a module, `diffusion_model.input_blocks.4.1.proj_in`.

    Args:
        path: dotted path with component; of a transformer, its original name behind that.
        spec: the base model it is for.
        origin: the file, for messages.

    Raises:
        AdapterRefused: LDM has no name for the module.
    """
    component, _, rest = path.partition(".")
    if is_text_encoder(path):
        encoder = encoder_of(spec, path)
        name = _NAMES.get(encoder or "") or _BY_COMPONENT[f"{component}."]
        return f"text_encoders.{name}.transformer.{rest}"
    name = rest if said_component(path) is not None else spec.ldm_name(path)
    if name is None:
        raise AdapterRefused(
            f"{origin}: {path} has no name in LDM; expected a layer of an LDM UNet; write format "
            f"kohya-diffusers, which ComfyUI reads, too",
            code=Refusal.UNMATCHED_MODULES,
        )
    return COMFYUI_UNET + name
