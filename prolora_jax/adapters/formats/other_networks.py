"""Pairs of a model's other networks: layers of pictures and sound beside a language model's."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule, StructuredModule
from prolora_jax.architectures.llm.names import ALONE, LM
from prolora_jax.architectures.spec import BaseModelSpec


def apart(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """The same adapter; pairs of layers that are not the language model's stand beside the others.

    Nobody moves them: they may be left behind, as whole layers may.

    Args:
        adapter: as parsed.
        spec: the base model; of one that does not see nothing changes.
    """
    if spec.lm_level == ALONE:
        return adapter
    every = (*adapter.modules, *adapter.structured)
    others = [module for module in every if not module.path.startswith(LM)]
    if not others or len(others) == len(every):
        return adapter
    beside = tuple(companion for module in others for companion in _tensors(module))
    return replace(
        adapter,
        modules=tuple(m for m in adapter.modules if m.path.startswith(LM)),
        structured=tuple(m for m in adapter.structured if m.path.startswith(LM)),
        companions=(*adapter.companions, *beside),
    )


def _tensors(module: LoraModule | StructuredModule) -> Iterator[Companion]:
    parts: dict[str, np.ndarray]
    if isinstance(module, LoraModule):
        parts = {"lora_A": module.down, "lora_B": module.up}
    else:
        parts = dict(module.parts)
    for name, array in parts.items():
        yield Companion(f"{module.path}.{name}", module.path, "layer", array)
