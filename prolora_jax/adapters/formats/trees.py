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
from prolora_jax.adapters.formats.keys import TREE_BLOCKS, TREE_ROWS
from prolora_jax.adapters.formats.lora_config import base_name
from prolora_jax.architectures.llm.facts import LmFacts
from prolora_jax.architectures.llm.heads import unfit_base
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.llm.tree_names import (
    HEADS,
    MAXTEXT,
    MAXTEXT_MODELS,
    TUNIX,
    TUNIX_FAMILIES,
    maxtext_name,
    rows_of,
    rows_of_family,
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
        adapter: whose header says how its rows lie, where it is of MaxText's.
        spec: the base model, which says how many heads there are.

    Raises:
        AdapterRefused: it does not, and there are rows in pairs; or it is another model than the
            adapter's: MaxText keeps its rows otherwise, or it has more blocks or fewer.
    """
    rows = adapter.metadata.get(TREE_ROWS)
    if rows is None:
        return adapter
    _require_its_model(adapter, rows, spec)
    modules = adapter.modules
    if rows == "pairs":
        _require_fit(adapter.origin, spec)
        modules = tuple(_turned(m, adapter.origin, spec, back=True) for m in modules)
    spent = {TREE_ROWS, TREE_BLOCKS}
    told = {key: text for key, text in adapter.metadata.items() if key not in spent}
    return replace(adapter, modules=modules, metadata=told)


def unscaled(adapter: Adapter) -> frozenset[str]:
    """Modules whose scale nobody knows without the base model: it depends on a head's size.

    Args:
        adapter: as parsed; one that was resolved has none.
    """
    if adapter.metadata.get(TREE_ROWS) != "pairs":
        return frozenset()
    return frozenset(m.path for m in adapter.modules if _heads_of(m) == "heads")


def _heads_of(module: LoraModule) -> str | None:
    """The field of `LmFacts` that has a layer's heads, where its rows are turned."""
    return HEADS.get(".".join(module.path.rsplit(".", 2)[-2:]))


def _require_its_model(adapter: Adapter, rows: str, spec: BaseModelSpec) -> None:
    """Refuse a base model that is not the one that a tree of MaxText's is said to be of."""
    facts = spec.facts
    if facts is not None and rows_of_family(facts.family) not in {None, rows}:
        _refuse(
            adapter.origin,
            f"a model_name of which MaxText keeps rows of q and k in {rows}, and base model "
            f"{spec.name}, {facts.family}",
            "the name of that model in MaxText",
            "correct model_name, or name the base model that the adapter was trained on",
        )
    count = adapter.metadata.get(TREE_BLOCKS)
    if count is not None and count != str(_blocks(spec)):
        _refuse(
            adapter.origin,
            f"arrays of {count} blocks, and base model {spec.name} with {_blocks(spec)}",
            "as many",
            "name the base model that the adapter was trained on",
        )


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
        tensors = _tunix(modules, layers, facts, adapter.origin)
    else:
        said["model_name"] = maxtext_name(facts)
        if rows_of(said["model_name"]) == "pairs":
            modules = [_turned(m, adapter.origin, spec, back=False) for m in modules]
        alpha, modules = with_one_alpha(modules, adapter.origin)
        tensors, said["empty"] = _maxtext(modules, layers, spec)
    return tensors, json.dumps({"lora_alpha": alpha} | said)


def _facts(origin: str, format: str, spec: BaseModelSpec) -> LmFacts:
    facts = spec.facts
    if facts is None or not facts.heads:
        _refuse(origin, f"no config.json with a number of heads beside base model {spec.name}")
    known = facts.family in TUNIX_FAMILIES if format == "tunix" else maxtext_name(facts) is not None
    if not known:
        wanted = "Llama 3, Qwen 2 or Qwen 3" if format == "tunix" else MAXTEXT_MODELS
        found = f"base model {spec.name}, {facts.family} with rotation {facts.rotation}"
        _refuse(origin, found, f"{wanted}, whose layers in {format} are known here", _WITHOUT)
    _require_fit(origin, spec)
    return facts


def _require_fit(origin: str, spec: BaseModelSpec) -> None:
    unfit = unfit_base(spec)
    if unfit is not None:
        raise AdapterRefused(f"{origin}: {unfit}", code=Refusal.SHAPE_MISMATCH)


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


def _tunix(
    modules: list[LoraModule], layers: Mapping[str, _Layer], facts: LmFacts, origin: str
) -> Tensors:
    heads = {"q_proj": facts.heads, "k_proj": facts.kv_heads, "v_proj": facts.kv_heads}
    tensors: Tensors = {}
    for module in modules:
        block, role = layers[module.path]
        name = role.rpartition(".")[2]
        a, b = module.down.T, module.up.T
        if name in heads:
            _require_heads(module.path, b.shape[1], heads[name], origin)
            b = b.reshape(module.rank, heads[name], -1)
        elif name == "o_proj":
            _require_heads(module.path, len(a), facts.heads, origin)
            a = a.reshape(facts.heads, -1, module.rank)
        place = f"layers/{block}/{TUNIX[role].replace('.', '/')}"
        tensors |= {f"{place}_lora_a/value": a, f"{place}_lora_b/value": b}
    return tensors


def _maxtext(
    modules: list[LoraModule], layers: Mapping[str, _Layer], spec: BaseModelSpec
) -> tuple[Tensors, list[str]]:
    """With an array for all blocks; a block without an update has zeros, and is told."""
    by_role: dict[str, dict[int, LoraModule]] = {}
    for module in modules:
        layer = layers[module.path]
        by_role.setdefault(layer.role, {})[layer.block] = module
    count = _blocks(spec)
    tensors: Tensors = {}
    without: list[str] = []
    for role, found in by_role.items():
        without += [f"{_STACK}.{block}.{role}" for block in range(count) if block not in found]
        one = next(iter(found.values()))
        empty = replace(one, down=np.zeros_like(one.down), up=np.zeros_like(one.up))
        pairs = [found.get(block, empty) for block in range(count)]
        place = f"decoder/layers/{MAXTEXT[role].replace('.', '/')}/kernel"
        tensors[f"{place}_lora_a/value"] = _in_one([m.down.T for m in pairs])
        tensors[f"{place}_lora_b/value"] = _in_one([m.up.T for m in pairs])
    return tensors, without


def _blocks(spec: BaseModelSpec) -> int:
    places = filter(None, map(place_of, spec.component("lm")))
    numbers = (p.steps[0].number for p in places if p.steps[0].stack.name == _STACK)
    return 1 + max(numbers, default=-1)


def _in_one(factors: list[np.ndarray]) -> np.ndarray:
    """Factors of all blocks as one array; NumPy has no dtype for two unlike kinds of 16 bits."""
    dtypes = {factor.dtype for factor in factors}
    wide = {dtype for dtype in dtypes if dtype.itemsize > 2} | {np.dtype(np.float32)}
    dtype = np.result_type(*(dtypes if len(dtypes) == 1 else wide))
    return np.stack([factor.astype(dtype, copy=False) for factor in factors], axis=1)


def _turned(module: LoraModule, origin: str, spec: BaseModelSpec, *, back: bool) -> LoraModule:
    """A pair of q or k with the rows of each head in pairs, q divided; or back, in halves."""
    whose = _heads_of(module)
    if whose is None:
        return module
    if spec.facts is None or not spec.facts.heads:
        _refuse(
            origin,
            f"rows in MaxText's order in {module.path}, and a base model {spec.name} that does not "
            f"say how many heads it has",
        )
    heads, rows = getattr(spec.facts, whose), module.up.shape[0]
    _require_heads(module.path, rows, heads, origin, even=True)
    size = rows // heads
    axes = (heads, size // 2, 2) if back else (heads, 2, size // 2)
    up = module.up.reshape(*axes, module.rank).swapaxes(1, 2).reshape(rows, module.rank)
    factor = math.sqrt(size) if whose == "heads" else 1.0
    scale = module.scale * factor if back else module.scale / factor
    return replace(module, up=up, alpha=scale * module.rank)


def _require_heads(path: str, rows: int, heads: int, origin: str, *, even: bool = False) -> None:
    if rows % (heads * (1 + even)):
        raise AdapterRefused(
            f"{origin}: {path}: found {rows} channels for {heads} heads; expected "
            f"{'an even' if even else 'the same'} number for each; name the base model that the "
            f"adapter was trained on, with its own config.json",
            code=Refusal.SHAPE_MISMATCH,
        )


def _refuse(
    origin: str,
    found: str,
    expected: str = "its config.json beside it",
    remedy: str = "give the base model's whole folder",
) -> NoReturn:
    raise AdapterRefused(
        f"{origin}: found {found}; expected {expected}; {remedy}", code=Refusal.UNMATCHED_MODULES
    )
