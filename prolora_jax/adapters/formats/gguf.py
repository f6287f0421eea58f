"""llama.cpp's LoRA: a pair for a tensor of a GGUF model, and one alpha for all of them.

Its scale is alpha / rank with the rank of each pair, so that patterns and rank-stabilised scales
are folded into `B` where one alpha does not do. Rows of q and k of Llama's own architecture are in
another order than transformers' (architectures.llm.gguf_names), and so are those of their `B`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.folding import with_one_alpha
from prolora_jax.adapters.formats.keys import GGUF_FACTS, Key
from prolora_jax.architectures.llm.gguf_names import GgufPlace, gguf_places
from prolora_jax.architectures.llm.heads import unfit_base
from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of
from prolora_jax.errors import AdapterRefused, Refusal

_ROWS = "rows"
PARTS = {"gguf_a": "down", "gguf_b": "up"}
ENDS = {".lora_a": ".gguf_a", ".lora_b": ".gguf_b"}
"""Ends of names in a file, and of the keys that `parse` knows them by."""

# All tensors that llama.cpp has pairs for, in the families of the table.
_INSIDE = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up")
_STEMS = (*_INSIDE, "ffn_down")
_OUTSIDE = ("token_embd", "output", "position_embd")


def places_in(
    origin: str, architecture: str, layers: Iterable[int], heads: int, kv_heads: int
) -> dict[str, GgufPlace]:
    """Where a GGUF model has its layers, by path without component.

    Args:
        origin: what to call the file.
        architecture: as GGUF files call it.
        layers: their numbers.
        heads: of queries; any number where only names are asked for.
        kv_heads: of keys and values.

    Raises:
        BaseModelError: there is no table of the architecture.
    """
    names = [f"blk.{n}.{stem}.weight" for n in layers for stem in _STEMS]
    names += [f"{stem}.weight" for stem in _OUTSIDE]
    values = {
        "general.architecture": architecture,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": kv_heads,
    }
    found = gguf_places(origin, names, values)
    return {key.removesuffix(".weight"): place for key, place in found.items()}


def pieces(key: Key, array: np.ndarray) -> Iterator[tuple[Key, np.ndarray]]:
    """The part of a module that a tensor is, as `LoraModule` has it.

    Args:
        key: of one of `PARTS`.
        array: `A` `(rank, in)` or `B` `(out, rank)`; of an embedding `A` is `(vocabulary, rank)`
            and `B` `(width, rank)`.

    Yields:
        The one part.
    """
    part = PARTS[key.part]
    if is_embedding(key.path):
        rows = part == "down"
        yield replace(key, part="up" if rows else "down"), array if rows else array.T
    else:
        yield replace(key, part=part), array


def alpha_of(metadata: Mapping[str, str], rank: int, origin: str) -> float:
    """The alpha of a pair: the file's own; of a file that has 0 llama.cpp takes a scale of 1.

    Raises:
        AdapterRefused: the pair's name is one that a GGUF file's pairs have here, in another file.
    """
    if GGUF_FACTS not in metadata:
        raise AdapterRefused(
            f"{origin}: found names that end in {' and '.join(PARTS)}, as this library calls what "
            f"it reads from GGUF files alone; expected a trainer's names; rename them",
            code=Refusal.UNKNOWN_KEYS,
        )
    said = float(json.loads(metadata[GGUF_FACTS])["alpha"])
    return said if said != 0.0 else float(rank)


def in_pairs(adapter: Adapter) -> bool:
    """Whether an adapter is as read from a GGUF file whose q and k have their rows in pairs."""
    facts = json.loads(adapter.metadata.get(GGUF_FACTS, "{}"))
    return adapter.format == "gguf" and facts.get(_ROWS) == "pairs"


def in_halves(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """An adapter as read from a GGUF file, with the rows of q and k in transformers' order.

    Args:
        adapter: whose rows are in pairs where its architecture has them so.
        spec: the base model, which says how many heads there are.

    Raises:
        AdapterRefused: it does not, and there are such rows; or it is of another architecture than
            the adapter, whose rows and names are another's then.
    """
    facts = json.loads(adapter.metadata.get(GGUF_FACTS, "{}"))
    if adapter.format != "gguf" or _ROWS not in facts:
        return adapter
    architecture = str(facts["architecture"])
    known = None if spec.facts is None else spec.facts.architecture
    if known not in {None, architecture}:
        raise AdapterRefused(
            f"{adapter.origin}: found an adapter of architecture {architecture}, and base model "
            f"{spec.name} of {known}; expected one; name the base model that it was trained on",
            code=Refusal.UNMATCHED_MODULES,
        )
    modules = adapter.modules
    if facts.pop(_ROWS) == "pairs":
        places = _places(adapter, spec, architecture)
        modules = tuple(
            _with_rows(m, places.get(m.path.removeprefix(LM)), adapter, back=True) for m in modules
        )
    # Without its rows: what has moved is of another base model.
    told = {**adapter.metadata, GGUF_FACTS: json.dumps(facts)}
    return replace(adapter, modules=modules, metadata=told)


def dump_tensors(adapter: Adapter, spec: BaseModelSpec) -> tuple[dict[str, np.ndarray], str]:
    """Tensors under the names of a GGUF adapter, and what its header says.

    Args:
        adapter: resolved; pairs alone.
        spec: the base model that it is for.

    Returns:
        Tensors by name; architecture and alpha as JSON.

    Raises:
        AdapterRefused: a layer has no name there, or the base model does not say its heads.
    """
    facts = spec.facts
    if facts is None or facts.architecture is None or not facts.heads:
        other = facts is not None and facts.architecture is None
        said = "another architecture" if other else "no config.json with a number of heads"
        raise AdapterRefused(
            f"{adapter.origin}: found {said} beside base model {spec.name}; expected a Llama, "
            f"Mistral, Qwen 2 or 3, Gemma 2 or 3, Phi 3 or GPT-2, whose tensors' names in GGUF "
            f"files are known here; give the base model's whole folder, or write peft",
            code=Refusal.UNMATCHED_MODULES,
        )
    places = _places(adapter, spec, facts.architecture)
    tensors: dict[str, np.ndarray] = {}
    alpha, modules = with_one_alpha(adapter.modules, adapter.origin)
    for module in modules:
        path = module.path.removeprefix(LM)
        place = places.get(path)
        if place is None or (facts.tied and place.name == "output.weight"):
            raise AdapterRefused(
                f"{adapter.origin}: {module.path}: found a layer that GGUF models of architecture "
                f"{facts.architecture} have no tensor for; expected others; leave it behind "
                f"(--exclude '*{path.rpartition('.')[2]}'), or write peft",
                code=Refusal.UNMATCHED_MODULES,
            )
        own = _with_rows(module, place, adapter, back=False)
        a, b = (own.up, own.down.T) if is_embedding(own.path) else (own.down, own.up)
        tensors[f"{place.name}.lora_a"], tensors[f"{place.name}.lora_b"] = a, b
    return tensors, json.dumps({"architecture": facts.architecture, "alpha": alpha})


def _places(adapter: Adapter, spec: BaseModelSpec, architecture: str) -> dict[str, GgufPlace]:
    layers = {p.steps[0].number for m in adapter.modules if (p := place_of(m.path)) is not None}
    facts = spec.facts
    heads = None if facts is None or not facts.heads else (facts.heads, facts.kv_heads)
    places = places_in(adapter.origin, architecture, sorted(layers), *(heads or (1, 1)))
    unfit = unfit_base(spec) if any(place.heads for place in places.values()) else None
    if unfit is not None:
        raise AdapterRefused(f"{adapter.origin}: {unfit}", code=Refusal.SHAPE_MISMATCH)
    if heads is None:
        lacking = [
            m.path
            for m in adapter.modules
            if (place := places.get(m.path.removeprefix(LM))) is not None and place.heads
        ]
        if lacking:
            raise AdapterRefused(
                f"{adapter.origin}: {lacking[0]}: found rows in llama.cpp's order, and a base "
                f"model {spec.name} that does not say how many heads it has; expected its "
                f"config.json beside it; give the base model's whole folder",
                code=Refusal.UNREADABLE_BASE,
            )
    return places


def _with_rows(
    module: LoraModule, place: GgufPlace | None, adapter: Adapter, *, back: bool
) -> LoraModule:
    """A pair whose `up` has the rows of each head in pairs; or back, in halves."""
    if place is None or place.heads is None:
        return module
    rows, size = module.up.shape[0], module.up.shape[0] // place.heads
    if rows != size * place.heads or size % 2:
        raise AdapterRefused(
            f"{adapter.origin}: {module.path}: found {rows} rows for {place.heads} heads; expected "
            f"an even number for each; name the base model that the adapter was trained on",
            code=Refusal.SHAPE_MISMATCH,
        )
    axes = (place.heads, size // 2, 2) if back else (place.heads, 2, size // 2)
    up = module.up.reshape(*axes, module.rank).swapaxes(1, 2).reshape(rows, module.rank)
    return replace(module, up=up)
