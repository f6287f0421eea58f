"""LoRA factors beside a language model's kernels, where `nets.adapters.adapted` finds them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.architectures.llm.names import LM
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.nets.adapters.tree import grafted


def beside(params: Any, name: str, factors: Mapping[str, tuple[Any, Any]]) -> Any:
    """A tree with factors in it; the base's arrays are the same objects.

    Args:
        params: of `CausalLm`.
        name: of the adapter, for `adapted`.
        factors: `(down (rank, in), up (out, rank))` by module path, the scale in them.

    Raises:
        AdapterRefused: a module has no kernel in the tree.
    """
    new = {}
    for path, (down, up) in factors.items():
        layer = tuple(path.removeprefix(LM).split("."))
        if not _has_kernel(params, layer):
            raise AdapterRefused(
                f"{path}: found no kernel of this layer among those that the model runs with; "
                f"expected one, which a head that is tied to the embedding has not; leave it out "
                f"with --exclude",
                code=Refusal.UNMATCHED_MODULES,
            )
        new[*layer, LORA + name, "down", "kernel"] = jnp.transpose(jnp.asarray(down))
        new[*layer, LORA + name, "up", "kernel"] = jnp.transpose(jnp.asarray(up))
    return grafted(params, new)


def _has_kernel(params: Any, layer: tuple[str, ...]) -> bool:
    level = params
    for name in layer:
        if name not in level:
            return False
        level = level[name]
    return "kernel" in level
