"""PEFT's folder: `base_model.model.<path>.lora_A.weight`, and the scale in `adapter_config.json`.

Here, where there are no disks, the configuration is the header string that diffusers would write,
with its fields prefixed by component; `io.peft_folder` makes folders of it.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.lora_config import base_name

Value = float | int


def dump_tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """Tensors under PEFT's keys with the component in front; factors as they are.

    Args:
        adapter: resolved.

    Returns:
        Tensors by key; extras unchanged, but for alphas without a module, which say nothing.
    """
    tensors = {}
    for module in adapter.modules:
        component, _, path = module.path.partition(".")
        tensors[f"{component}.{PEFT_WRAPPER}{path}.lora_A.weight"] = module.down
        tensors[f"{component}.{PEFT_WRAPPER}{path}.lora_B.weight"] = module.up
    return tensors | {key: a for key, a in adapter.extras.items() if not key.endswith(".alpha")}


def configuration(adapter: Adapter, dora: Collection[str] = ()) -> str:
    """The LoraConfig of each component, as JSON with the component before each field.

    The commonest rank and alpha stand for all; modules with others are listed in `rank_pattern`
    and `alpha_pattern`, one pattern for each value, which is why peft's own loader does not take
    minutes over an adapter of a thousand modules.

    Args:
        adapter: resolved.
        dora: paths of modules that have a magnitude.
    """
    by_component: dict[str, list[LoraModule]] = {}
    for module in adapter.modules:
        by_component.setdefault(module.path.partition(".")[0], []).append(module)
    name = base_name(adapter.metadata)
    fields = {
        f"{component}.{field}": value
        for component, modules in by_component.items()
        for field, value in (_fields(modules) | {"base_model_name_or_path": name}).items()
    }
    with_magnitude = {path.partition(".")[0] for path in dora}
    fields |= {f"{c}.use_dora": True for c in by_component if c in with_magnitude}
    biased = {c.path.partition(".")[0] for c in adapter.companions if c.part == "bias"}
    fields |= {f"{component}.lora_bias": True for component in by_component if component in biased}
    return json.dumps(fields)


def _fields(modules: Iterable[LoraModule]) -> dict[str, object]:
    ranks = {_inner(module): module.rank for module in modules}
    alphas = {_inner(module): _plain(module.scale * module.rank) for module in modules}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def _inner(module: LoraModule) -> str:
    return module.path.partition(".")[2]


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
