"""Adapters of diffusion transformers on MaxDiffusion's parameters, where blocks are one kernel."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.flax_stacks import Pair, require_places, stacked
from prolora_jax.architectures.dit.trees import TreeModule
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.nets.adapters.tree import Place, layers_of_transformers


def pairs_of_stacks(
    params: Mapping[Any, Any],
    known: Mapping[str, TreeModule],
    modules: Sequence[LoraModule],
    adapter: Adapter,
) -> Iterator[tuple[Place, Pair]]:
    """What is to be added to the kernels of transformers.

    Args:
        params: the tree.
        known: the modules in it, as `modules_of_transformers` has them.
        modules: of the adapter, all of them in `known`.
        adapter: for messages.

    Yields:
        Place of a kernel, and its pair in float32, the scale in `up`: `(in, rank)` and
        `(rank, out)`, of a stack with an axis for the blocks before them.

    Raises:
        AdapterRefused: a module's place is not certain.
    """
    places = {path: module.place for path, module in known.items()}
    require_places(adapter, [module.path for module in modules], places)
    layers = layers_of_transformers(params)
    plain = [
        replace(
            module,
            down=module.down.astype(np.float32),
            up=module.up.astype(np.float32) * np.float32(module.scale),
            alpha=None,
        )
        for module in modules
    ]
    for layer, pair in stacked(plain, places, adapter.origin):
        yield (*layers[layer], "kernel"), pair


def refuse_beside(params: Mapping[Any, Any]) -> None:
    """Refuse to put an adapter beside the kernels of a transformer.

    Raises:
        AdapterRefused: the tree has one.
    """
    layers = layers_of_transformers(params)
    if layers:
        raise AdapterRefused(
            f"parameters: {next(iter(layers))}: found a transformer of MaxDiffusion's, to put an "
            f"adapter beside its kernels; expected a net that runs here; merge the adapter",
            code=Refusal.UNMATCHED_MODULES,
        )
