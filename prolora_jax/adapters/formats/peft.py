"""PEFT's folder: `base_model.model.<path>.lora_A.weight`, and the scale in `adapter_config.json`.

Here, where there are no disks, the configuration is the header string that diffusers would write,
with its fields prefixed by component; `io.peft_folder` makes folders of it.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.algorithm import setting
from prolora_jax.adapters.algorithms.lokr import is_full
from prolora_jax.adapters.algorithms.table import WRITTEN, algorithm_for
from prolora_jax.adapters.formats.expert_parameters import FIELD, ParameterTensors
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.lora_config import base_name, kept_fields
from prolora_jax.adapters.formats.saved_layers import saved_fields
from prolora_jax.adapters.formats.token_rows import row_fields
from prolora_jax.architectures.llm.layouts import is_embedding, stored_in_out, task_of
from prolora_jax.architectures.llm.names import ALONE, LM, name_inside

Value = float | int
_LAYOUT = ("use_effective_conv2d", "decompose_both", "decompose_factor")
"""Fields of LoHa's and LoKr's configurations that decide the shapes of their tensors."""


def dump_tensors(
    adapter: Adapter, parameters: Iterable[ParameterTensors] = ()
) -> dict[str, np.ndarray]:
    """Tensors under PEFT's keys with the component in front; factors as they are.

    Args:
        adapter: resolved.
        parameters: pairs of all experts of a layer.

    Returns:
        Tensors by key; extras unchanged, but for alphas without a module, which say nothing.
    """
    tensors = {}
    for module in adapter.modules:
        component, _, path = module.path.partition(".")
        name = f"{component}.{PEFT_WRAPPER}{path}"
        if is_embedding(module.path):
            tensors[f"{name}.lora_embedding_A"] = module.up.T
            tensors[f"{name}.lora_embedding_B"] = module.down.T
            continue
        tensors[f"{name}.lora_A.weight"] = module.down
        tensors[f"{name}.lora_B.weight"] = module.up
    for pair in parameters:
        component, _, path = pair.name.partition(".")
        tensors[f"{component}.{PEFT_WRAPPER}{path}.lora_A.weight"] = pair.a
        tensors[f"{component}.{PEFT_WRAPPER}{path}.lora_B.weight"] = pair.b
    return tensors | {key: a for key, a in adapter.extras.items() if not key.endswith(".alpha")}


def inside(tensors: Mapping[str, np.ndarray], level: str) -> dict[str, np.ndarray]:
    """Tensors under the names that a language model's layers have in a model that also sees.

    Args:
        tensors: under PEFT's keys with the component in front, others as they are.
        level: that the layers stand in (`names.name_inside`).
    """
    start = f"{LM}{PEFT_WRAPPER}"
    return {
        start + name_inside(key.removeprefix(start), level) if key.startswith(start) else key: array
        for key, array in tensors.items()
    }


def configuration(
    adapter: Adapter,
    dora: Collection[str] = (),
    parameters: Sequence[ParameterTensors] = (),
    routers: Collection[str] = (),
    level: str = ALONE,
) -> str:
    """The configuration of each component, as JSON with the component before each field.

    The commonest rank and alpha stand for all; modules with others are listed in `rank_pattern`
    and `alpha_pattern`, one pattern for each value, which is why peft's own loader does not take
    minutes over an adapter of a thousand modules.

    Args:
        adapter: resolved.
        dora: paths of modules that have a magnitude.
        parameters: pairs of all experts of a layer, which are no modules of the adapter's.
        routers: paths of modules that peft adapts as parameters.
        level: that a language model's layers stand in (`inside`).
    """
    by_component = _by_component(adapter.modules)
    if parameters:
        by_component.setdefault(LM.removesuffix("."), [])
    own = _by_component(m for m in adapter.structured if m.algorithm in WRITTEN)
    name = base_name(adapter.metadata)
    of_each = {
        component: _fields(modules, parameters if f"{component}." == LM else (), routers, level)
        for component, modules in by_component.items()
    }
    of_each |= {component: _own_fields(modules, level) for component, modules in own.items()}
    fields = {
        f"{component}.{field}": value
        for component, values in of_each.items()
        for field, value in (values | {"base_model_name_or_path": name}).items()
    }
    if f"{LM}task_type" in fields:  # without it peft makes no causal model of the folder
        fields[f"{LM}task_type"] = task_of((m.path for m in adapter.modules), level)
        kept = kept_fields(adapter.metadata)
        fields |= {f"{LM}{name}": said for name, said in kept.items() if name != FIELD}
    with_magnitude = {path.partition(".")[0] for path in dora}
    fields |= {f"{c}.use_dora": True for c in by_component if c in with_magnitude}
    biased = {c.path.partition(".")[0] for c in adapter.companions if c.part == "bias"}
    fields |= {f"{component}.lora_bias": True for component in by_component if component in biased}
    saved = saved_fields(adapter.companions, adapter.metadata, level)
    return json.dumps(fields | row_fields(adapter.companions) | saved)


_M = TypeVar("_M", LoraModule, StructuredModule)


def _by_component(modules: Iterable[_M]) -> dict[str, list[_M]]:
    found: dict[str, list[_M]] = {}
    for module in modules:
        found.setdefault(module.path.partition(".")[0], []).append(module)
    return found


def _fields(
    modules: Sequence[LoraModule],
    parameters: Sequence[ParameterTensors],
    routers: Collection[str],
    level: str,
) -> dict[str, object]:
    ranks = {_inner(module.path, level): module.rank for module in modules}
    alphas = {_inner(m.path, level): _plain(m.scale * m.rank) for m in modules}
    apart = [_inner(path, level) for path in routers]
    for name in apart:  # as a parameter it has another name, also in patterns
        ranks[f"{name}.weight"], alphas[f"{name}.weight"] = ranks.pop(name), alphas.pop(name)
    for pair in parameters:
        name = _inner(pair.path, level)
        ranks[name], alphas[name] = pair.rank, _plain(pair.alpha)
    sizes = _sizes(ranks, alphas, "lora_alpha")
    named = {f"{name}.weight" for name in apart} | {_inner(p.path, level) for p in parameters}
    if named:
        sizes |= {"target_modules": sorted(ranks.keys() - named), FIELD: sorted(named)}
    return {
        "peft_type": "LORA",
        **sizes,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(stored_in_out(module.path) for module in modules),
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def _own_fields(modules: Sequence[StructuredModule], level: str) -> dict[str, object]:
    """The configuration of modules of LoHa or LoKr: their layout is the input's."""
    sizes = {_inner(module.path, level): _size_of(module) for module in modules}
    ranks = {path: rank for path, (rank, _) in sizes.items()}
    alphas = {path: _plain(alpha) for path, (_, alpha) in sizes.items()}
    layout = {name: setting(modules[0], name) for name in _LAYOUT}
    return {
        "peft_type": modules[0].algorithm.upper(),
        **_sizes(ranks, alphas, "alpha"),
        **{name: value for name, value in layout.items() if value is not None},
        "rank_dropout": 0.0,
        "module_dropout": 0.0,
        "init_weights": True,
    }


def _size_of(module: StructuredModule) -> tuple[int, float]:
    """Rank and alpha of a module of LoHa or LoKr."""
    rank = algorithm_for(module).rank(module.parts)
    alpha = float(rank) if module.alpha is None else module.alpha
    if not is_full(module.parts):
        return rank, alpha
    # Its tensors say no rank: from a large one peft makes full matrices, too. The quotient by a
    # power of two is exact.
    widest = max(max(part.shape[:2]) for part in module.parts.values())
    rank = 1 << (widest - 1).bit_length()
    return rank, alpha * rank


def _sizes(
    ranks: Mapping[str, Value], alphas: Mapping[str, Value], field: str
) -> dict[str, object]:
    """What all kinds have: ranks, alphas under the kind's own name, and the modules."""
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "task_type": None,
        "auto_mapping": None,
        "inference_mode": True,
        "r": rank,
        field: alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "target_modules": sorted(ranks),
    }


def _inner(path: str, level: str) -> str:
    component, _, inner = path.partition(".")
    return name_inside(inner, level) if f"{component}." == LM else inner


def _plain(alpha: float) -> Value:
    """As a whole number where it is one: some readers of the file expect an integer."""
    return int(alpha) if alpha == int(alpha) else alpha


def _commonest(values: Mapping[str, Value]) -> Value:
    return Counter(values.values()).most_common(1)[0][0]


def _patterns(values: Mapping[str, Value], default: Value) -> dict[str, Value]:
    others: dict[Value, list[str]] = {}
    for path, value in values.items():
        if value != default:
            others.setdefault(value, []).append(re.escape(path))
    # peft looks for a pattern at the end of a path, from any dot on; `^` ties it to the start.
    return {f"^({'|'.join(paths)})": value for value, paths in others.items()}
