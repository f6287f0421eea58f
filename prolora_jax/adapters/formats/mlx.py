"""MLX-LM's adapters: both factors transposed, `scale` is the factor itself, experts as one tensor.

A linear layer has `lora_a` `(in, rank)` and `lora_b` `(rank, out)`, an embedding `(vocabulary,
rank)` and `(rank, width)`, all experts of a layer `(experts, rank, in)` and `(experts, out, rank)`.
The scale stands in the folder's own `adapter_config.json`; it is no alpha.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.keys import MLX_CONFIG, Key
from prolora_jax.adapters.formats.lora_config import base_name
from prolora_jax.adapters.formats.segments import scaled_alike
from prolora_jax.architectures.llm.fused import expert_of, expert_path, is_turned
from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.errors import AdapterRefused, Refusal

PARTS = {"mlx_a": "down", "mlx_b": "up"}
_EXPERTS = ".switch_mlp."

Tensors = dict[str, np.ndarray]


def pieces(key: Key, array: np.ndarray) -> Iterator[tuple[Key, np.ndarray]]:
    """The parts of modules that a tensor holds, as `LoraModule` has them.

    Args:
        key: of one of `PARTS`.
        array: the tensor.

    Yields:
        One; of experts one for each.
    """
    part = PARTS[key.part]
    block, found, layer = key.path.partition(_EXPERTS)
    if found and array.ndim == 3:
        for number, own in enumerate(array):
            yield replace(key, path=expert_path(block, number, layer), part=part), own
    elif is_embedding(key.path):
        yield replace(key, part={"down": "up", "up": "down"}[part]), array
    else:
        yield replace(key, part=part), array.T


def scale_of(metadata: Mapping[str, str], origin: str) -> float:
    """The factor of every update.

    Args:
        metadata: header strings of the file, the configuration among them.
        origin: the file, for messages.

    Raises:
        AdapterRefused: there is no configuration, or no scale in it.
    """
    try:
        parameters = json.loads(metadata[MLX_CONFIG])["lora_parameters"]
        scale = float(parameters["scale"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as failure:
        raise AdapterRefused(
            f"{origin}: found factors of MLX-LM, and no scale for them ({failure!r:.80}); expected "
            f"lora_parameters.scale in the adapter_config.json beside them; fetch the whole folder",
            code=Refusal.UNKNOWN_KEYS,
        ) from failure
    if not math.isfinite(scale):
        raise AdapterRefused(
            f"{origin}: found scale {scale} in adapter_config.json; expected a finite number; "
            f"fetch the folder again",
            code=Refusal.NON_FINITE,
        )
    return scale


def dump_tensors(adapter: Adapter, spec: BaseModelSpec) -> tuple[Tensors, str]:
    """Tensors under MLX-LM's keys, and its configuration.

    Args:
        adapter: resolved; pairs alone.
        spec: the base model that it is for, which knows how many layers and experts there are.

    Returns:
        Factors keep their numbers where all modules have one scale; the rank is one.

    Raises:
        AdapterRefused: it has experts of a model that MLX-LM has other names for.
    """
    modules = list(adapter.modules)
    if len({module.scale for module in modules}) > 1:
        modules = scaled_alike(modules, adapter.origin)
    scale, rank = modules[0].scale, max(adapter.ranks)
    tensors: Tensors = {}
    experts: dict[str, dict[int, LoraModule]] = {}
    for module in (module.padded(rank) for module in modules):
        expert = expert_of(module.path)
        if expert is not None and is_turned(expert.block, spec.modules):
            raise AdapterRefused(
                f"{adapter.origin}: {module.path}: found an expert of gpt-oss or Llama 4; expected "
                f"models whose experts' names in MLX-LM are known here; leave the experts behind "
                f"(--exclude '*.experts.*'), or write peft",
                code=Refusal.UNMATCHED_MODULES,
            )
        if expert is not None:
            name = f"{expert.block}{_EXPERTS}{expert.part}"
            experts.setdefault(name, {})[expert.number] = module
            continue
        name, pair = module.path.removeprefix(LM), (module.down.T, module.up.T)
        if is_embedding(module.path):
            pair = module.up, module.down
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = pair
    for name, found in experts.items():
        pairs = _stacked(name, found, spec)
        inner = name.removeprefix(LM)
        tensors[f"{inner}.lora_a"], tensors[f"{inner}.lora_b"] = pairs
    config = {
        "fine_tune_type": "lora",
        "num_layers": _layers(adapter, spec),
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted({*map(_inner, [*experts, *(m.path for m in modules)])} - {""}),
        },
        "model": base_name(adapter.metadata),
    }
    return tensors, json.dumps(config)


def _stacked(
    name: str, found: Mapping[int, LoraModule], spec: BaseModelSpec
) -> tuple[np.ndarray, np.ndarray]:
    block, _, part = name.partition(_EXPERTS)
    count = sum(
        (own := expert_of(path)) is not None and (own.block, own.part) == (block, part)
        for path in spec.modules
    )
    one = next(iter(found.values()))
    empty = np.zeros_like(one.down), np.zeros_like(one.up)
    pairs = [(m.down, m.up) if (m := found.get(n)) else empty for n in range(count)]
    downs, ups = zip(*pairs, strict=True)
    return np.stack(downs), np.stack(ups)


def _inner(path: str) -> str:
    """What the configuration calls a layer: by its role in its block; of an expert's nothing."""
    if expert_of(path) is not None:
        return ""
    place = place_of(path)
    return path.removeprefix(LM) if place is None else place.role


def _layers(adapter: Adapter, spec: BaseModelSpec) -> int:
    """How many blocks, from the last one on, have a module."""

    def number(path: str) -> int | None:
        place = place_of(path)
        return None if place is None else place.steps[0].number

    numbers = [n for path in spec.modules if (n := number(path)) is not None]
    own = [n for module in adapter.modules if (n := number(module.path)) is not None]
    return max(numbers, default=-1) + 1 - min(own, default=max(numbers, default=-1) + 1)
