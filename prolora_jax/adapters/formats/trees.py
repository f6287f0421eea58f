"""Trees of tunix and MaxText: factors of qwix's beside the weights, whose axes they have.

The update of a kernel `(in, out)` is `alpha / rank * a b`, `a` `(in, rank)` and `b` `(rank, out)`.
qwix has one rank and one alpha for all. In tunix heads are axes of their own: q, k and v have `b`
`(rank, heads, size)`, o has `a` `(heads, size, rank)`. In MaxText they are not, and one array has
all blocks (`scan_layers`), the second axis counts them; rows of q and k may lie in pairs
(architectures.llm.tree_names). Run by hand: qwix 0.1.8, tunix 0.1.7, MaxText 0.2.5.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, NoReturn

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.folding import with_one_alpha
from prolora_jax.adapters.formats.keys import TREE_ROWS
from prolora_jax.adapters.formats.lora_config import base_name
from prolora_jax.architectures.llm.facts import LmFacts
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.llm.tree_names import (
    HEADS,
    MAXTEXT,
    MAXTEXT_MODELS,
    TUNIX,
    TUNIX_FAMILIES,
    maxtext_name,
    rows_of,
)
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.errors import AdapterRefused, Refusal

Tensors = dict[str, np.ndarray]

_STACK = "model.layers"
_WITHOUT = "write peft"


class _Layer(NamedTuple):
    """A layer of transformers': the number of its block, and what it is called in it."""

    block: int
    role: str


def in_halves(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """An adapter as read from MaxText's tree, with rows and scale of q and k as transformers'.

    Args:
        adapter: whose header says that its rows are in pairs, where they are.
        spec: the base model, which says how many heads there are.

    Raises:
        AdapterRefused: it does not, and there are such rows.
    """
    if TREE_ROWS not in adapter.metadata:
        return adapter
    modules = tuple(_turned(m, adapter.origin, spec, back=True) for m in adapter.modules)
    told = {key: text for key, text in adapter.metadata.items() if key != TREE_ROWS}
    return replace(adapter, modules=modules, metadata=told)


def dump_tensors(adapter: Adapter, format: str, spec: BaseModelSpec) -> tuple[Tensors, str]:
    """Arrays of a tree, and what is said beside it.

    Args:
        adapter: resolved; pairs alone.
        format: `tunix` or `maxtext`.
        spec: the base model that it is for, which knows its heads and how many blocks it has.

    Returns:
        Arrays by their place, with `/` between its levels, and the configuration as JSON.

    Raises:
        AdapterRefused: a layer has no name there, or the base model does not say its heads.
    """
    facts = _facts(adapter.origin, format, spec)
    layers = {m.path: _layer(m.path, adapter.origin, format) for m in adapter.modules}
    rank = max(adapter.ranks)
    modules = [module.padded(rank) for module in adapter.modules]
    said = {"r": rank, "base_model_name_or_path": base_name(adapter.metadata)}
    if format == "tunix":
        alpha, modules = with_one_alpha(modules, adapter.origin)
        tensors = _tunix(modules, layers, facts)
    else:
        said["model_name"] = maxtext_name(facts)
        if rows_of(said["model_name"]) == "pairs":
            modules = [_turned(m, adapter.origin, spec, back=False) for m in modules]
        alpha, modules = with_one_alpha(modules, adapter.origin)
        tensors = _maxtext(modules, layers, spec)
    return tensors, json.dumps({"lora_alpha": alpha} | said)


def _facts(origin: str, format: str, spec: BaseModelSpec) -> LmFacts:
    facts = spec.facts
    if facts is None:
        _refuse(origin, f"no config.json with a number of heads beside base model {spec.name}")
    known = facts.family in TUNIX_FAMILIES if format == "tunix" else maxtext_name(facts) is not None
    if not known:
        wanted = "Llama 3, Qwen 2 or Qwen 3" if format == "tunix" else MAXTEXT_MODELS
        found = f"base model {spec.name}, {facts.family} with rotation {facts.rotation}"
        _refuse(origin, found, f"{wanted}, whose layers in {format} are known here", _WITHOUT)
    return facts


def _layer(path: str, origin: str, format: str) -> _Layer:
    place = place_of(path)
    head, _, _ = path.removeprefix(LM).partition(f"{_STACK}.")
    if place is None or head or place.role not in (TUNIX if format == "tunix" else MAXTEXT):
        name = path.rpartition(".")[2]
        _refuse(
            origin,
            f"{path}, which {format} has no factors of",
            f"q, k, v, o, gate, up and down of {_STACK}",
            f"leave it behind (--exclude '*{name}'), or {_WITHOUT}",
        )
    return _Layer(place.steps[0].number, place.role)


def _tunix(modules: list[LoraModule], layers: Mapping[str, _Layer], facts: LmFacts) -> Tensors:
    heads = {"q_proj": facts.heads, "k_proj": facts.kv_heads, "v_proj": facts.kv_heads}
    tensors: Tensors = {}
    for module in modules:
        block, role = layers[module.path]
        name = role.rpartition(".")[2]
        a, b = module.down.T, module.up.T
        if name in heads:
            b = b.reshape(module.rank, heads[name], -1)
        elif name == "o_proj":
            a = a.reshape(facts.heads, -1, module.rank)
        place = f"layers/{block}/{TUNIX[role].replace('.', '/')}"
        tensors |= {f"{place}_lora_a/value": a, f"{place}_lora_b/value": b}
    return tensors


def _maxtext(
    modules: list[LoraModule], layers: Mapping[str, _Layer], spec: BaseModelSpec
) -> Tensors:
    """With an array for all blocks; a block without an update has zeros."""
    by_role: dict[str, dict[int, LoraModule]] = {}
    for module in modules:
        layer = layers[module.path]
        by_role.setdefault(layer.role, {})[layer.block] = module
    places = filter(None, map(place_of, spec.component("lm")))
    count = 1 + max(p.steps[0].number for p in places if p.steps[0].stack.name == _STACK)
    tensors: Tensors = {}
    for role, found in by_role.items():
        one = next(iter(found.values()))
        empty = replace(one, down=np.zeros_like(one.down), up=np.zeros_like(one.up))
        pairs = [found.get(block, empty) for block in range(count)]
        place = f"decoder/layers/{MAXTEXT[role].replace('.', '/')}/kernel"
        tensors[f"{place}_lora_a/value"] = np.stack([m.down.T for m in pairs], axis=1)
        tensors[f"{place}_lora_b/value"] = np.stack([m.up.T for m in pairs], axis=1)
    return tensors


def _turned(module: LoraModule, origin: str, spec: BaseModelSpec, *, back: bool) -> LoraModule:
    """A pair of q or k with the rows of each head in pairs, q divided; or back, in halves."""
    role = ".".join(module.path.rsplit(".", 2)[-2:])
    if role not in HEADS:
        return module
    if spec.facts is None:
        _refuse(
            origin,
            f"rows in MaxText's order in {module.path}, and a base model {spec.name} that does not "
            f"say how many heads it has",
        )
    heads, rows = getattr(spec.facts, HEADS[role]), module.up.shape[0]
    size = rows // heads
    if rows != size * heads or size % 2:
        raise AdapterRefused(
            f"{origin}: {module.path}: found {rows} rows for {heads} heads; expected an even "
            f"number for each; name the base model that the adapter was trained on",
            code=Refusal.SHAPE_MISMATCH,
        )
    axes = (heads, size // 2, 2) if back else (heads, 2, size // 2)
    up = module.up.reshape(*axes, module.rank).swapaxes(1, 2).reshape(rows, module.rank)
    factor = math.sqrt(size) if HEADS[role] == "heads" else 1.0
    scale = module.scale * factor if back else module.scale / factor
    return replace(module, up=up, alpha=scale * module.rank)


def _refuse(
    origin: str,
    found: str,
    expected: str = "its config.json beside it",
    remedy: str = "give the base model's whole folder",
) -> NoReturn:
    raise AdapterRefused(
        f"{origin}: found {found}; expected {expected}; {remedy}", code=Refusal.UNMATCHED_MODULES
    )
