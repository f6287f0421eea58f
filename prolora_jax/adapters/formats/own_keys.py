"""Keys of modules that are written as they are: LoHa and LoKr under the names of a format.

LyCORIS, the web interfaces and ComfyUI tell each module's algorithm by its own keys, so that one
file may hold several. A folder of peft's holds one, which its configuration names.
"""

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.algorithms.table import WRITTEN, algorithm_for
from prolora_jax.adapters.formats.comfyui import module_name as comfyui_name
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.kohya import module_name as kohya_name
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

HOLD_OWN = frozenset({"kohya-ldm", "kohya-diffusers", "comfyui"})
"""Formats whose readers look at each module by itself."""


def own_tensors(
    adapter: Adapter, format: str, spec: BaseModelSpec, *, folded: bool = False
) -> dict[str, np.ndarray]:
    """The tensors of an adapter's modules of LoHa and LoKr under the keys of a format.

    Args:
        adapter: resolved against `spec`; its modules of DoRA are written elsewhere.
        format: one of `FORMATS`, as it is written.
        spec: the base model that it is for.
        folded: whether the output has no field for the scale, as a single file of peft's.

    Raises:
        AdapterRefused: a module is of an algorithm that is not written, or has no place there.
    """
    tensors: dict[str, np.ndarray] = {}
    for module in adapter.structured:
        algorithm = algorithm_for(module)
        in_folder = format == "peft" and not folded and bool(module.settings)
        if algorithm.name not in WRITTEN or not (in_folder or format in HOLD_OWN):
            raise AdapterRefused(
                f"{adapter.origin}: {module.path}: unsupported-algorithm:{algorithm.title}: found "
                f"its own tensors for format {format}; expected LoHa or LoKr in format "
                f"{', '.join(sorted(HOLD_OWN))}, or a folder of peft's; make LoRA factors of it "
                f"(prolora convert --to lora, migrate --format lora)",
                code=Refusal.UNSUPPORTED_ALGORITHM,
            )
        if format == "peft":
            component, _, path = module.path.partition(".")
            name = f"{component}.{PEFT_WRAPPER}{path}"
        elif format == "comfyui":
            name = comfyui_name(module.path, spec, adapter.origin)
        else:
            name = kohya_name(module.path, spec, format == "kohya-ldm", adapter.origin)
        ends = {part: end for end, part in algorithm.ends.items()}
        tensors |= {f"{name}{ends[part]}": array for part, array in module.parts.items()}
        if module.alpha is not None and format != "peft":  # its configuration has them
            tensors[f"{name}.alpha"] = np.asarray(module.alpha, np.float32)
    return tensors
