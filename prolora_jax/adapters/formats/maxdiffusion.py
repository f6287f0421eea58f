"""MaxDiffusion: kohya's keys with an alpha on every module and one rank for the whole file.

Its loader knows one rank, takes any missing alpha for an error, and discards negative ones.
"""

import logging
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats import kohya
from prolora_jax.adapters.formats.folding import without_sign
from prolora_jax.architectures.spec import BaseModelSpec

_log = logging.getLogger(__name__)


def dump_tensors(adapter: Adapter, spec: BaseModelSpec) -> dict[str, np.ndarray]:
    """Tensors under kohya's keys; zero columns up to the largest rank, the same scale everywhere.

    Args:
        adapter: resolved against `spec`, factors with as many axes as the layer's weight.
        spec: the base model it is for.

    Returns:
        Tensors by key; extras, but for alphas without a module, unchanged.

    Raises:
        AdapterRefused: LDM has no name for a module.
    """
    for module in adapter.modules:
        # Its layers are convolutions where "conv" is in the name, and linear everywhere else.
        if module.down.ndim == 4 and "conv" not in module.path:
            _log.warning(
                "%s: %s is a convolution that MaxDiffusion takes for a linear layer",
                adapter.origin,
                module.path,
            )
            break
    rank = max(adapter.ranks)
    modules = tuple(_padded(module, rank) for module in adapter.modules)
    extras = {key: a for key, a in adapter.extras.items() if not key.endswith(".alpha")}
    padded = replace(adapter, modules=modules, extras=extras)
    return kohya.dump_tensors(padded, spec, ldm=spec.is_sdxl_family)


def _padded(module: LoraModule, rank: int) -> LoraModule:
    module = without_sign(module)
    return replace(module.padded(rank), alpha=module.scale * rank)
