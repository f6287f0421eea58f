"""Keys of a Flax tree with `/` between its levels, and the tensors under them."""

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter
from prolora_jax.architectures.naming import flax_path

LORA = "lora-"
DEFAULT_NAME = "default"


def dump_tensors(adapter: Adapter, name: str = DEFAULT_NAME) -> dict[str, np.ndarray]:
    """Tensors under their places in a Flax tree, kernels in Flax layout, alpha as it is.

    Args:
        adapter: resolved.
        name: of the adapter in the tree.

    Returns:
        Tensors by key; extras, but for alphas without a module, unchanged.
    """
    tensors = {}
    for module in adapter.modules:
        place = f"{flax_path(module.path)}/{LORA}{name}"
        tensors[f"{place}/down/kernel"] = layout.weight_to_kernel(module.down)
        tensors[f"{place}/up/kernel"] = layout.weight_to_kernel(module.up)
        if module.alpha is not None:
            tensors[f"{place}/alpha"] = np.asarray(module.alpha, np.float32)
    return tensors | {key: a for key, a in adapter.extras.items() if not key.endswith("alpha")}
