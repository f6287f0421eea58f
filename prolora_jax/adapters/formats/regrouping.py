"""Modules of a language model's adapter as its base model has them: apart, or together.

A trainer may have one layer where the model's files have three, or three for one, or a parameter
for all experts. What comes of it is the same update, module by module of the base model.
"""

from dataclasses import replace

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats import gguf, trees
from prolora_jax.adapters.formats.expert_parameters import experts_apart, experts_in, is_parameter
from prolora_jax.adapters.formats.keys import TREE_ROWS
from prolora_jax.adapters.formats.segments import cut, joined, one_after_another
from prolora_jax.architectures.llm.fused import FUSED, FUSED_BY_PART, on_disk
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.llm.tree_names import HEADS
from prolora_jax.architectures.spec import BaseModelSpec


def regrouped(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """An adapter whose modules are those of the base model, where they are parts or sums of such.

    Args:
        adapter: as parsed.
        spec: the base model.

    Returns:
        The adapter; modules that are neither stay, to be refused for their names.

    Raises:
        AdapterRefused: the file does not say what a pair of all experts is of.
    """
    adapter = trees.in_halves(gguf.in_halves(adapter, spec), spec)
    unknown = [m for m in adapter.modules if m.path.startswith(LM) and m.path not in spec.modules]
    if not unknown:
        return adapter
    found: list[LoraModule] = [m for m in adapter.modules if m.path in spec.modules]
    counts: dict[str, int] | None = None  # asked for by few, of all layers
    together: dict[str, dict[str, LoraModule]] = {}
    for module in adapter.modules:
        if module.path in spec.modules:
            continue
        home, _, name = module.path.rpartition(".")
        fused = f"{home}.{FUSED_BY_PART[name]}" if name in FUSED_BY_PART else ""
        if is_parameter(module):
            counts = experts_in(spec) if counts is None else counts
            found += experts_apart(adapter, module, spec, counts) or [module]
        elif name in FUSED and f"{home}.{FUSED[name][0]}" in spec.modules:
            found += _apart(module, spec) or [module]
        elif fused in spec.modules:
            together.setdefault(fused, {})[name] = module
        elif on_disk(module.path) in spec.modules:
            found.append(replace(module, path=on_disk(module.path)))
        else:
            found.append(module)
    for fused, parts in together.items():
        found += _together(fused, parts, spec, adapter.origin)
    return replace(adapter, modules=tuple(found))


def row_order(adapter: Adapter) -> str | None:
    """Whose order the rows of q and k have in an adapter; None where it is transformers'.

    Args:
        adapter: as parsed; one that was resolved has transformers'.
    """
    if not any(m.path.endswith(tuple(HEADS)) for m in adapter.modules):
        return None
    if adapter.metadata.get(TREE_ROWS) == "pairs":
        return "MaxText"
    return "llama.cpp" if gguf.in_pairs(adapter) else None


def _apart(module: LoraModule, spec: BaseModelSpec) -> list[LoraModule]:
    home, _, name = module.path.rpartition(".")
    paths = [f"{home}.{part}" for part in FUSED[name]]
    rows = [spec.modules[path].shape[0] for path in paths if path in spec.modules]
    if len(rows) != len(paths) or module.up.shape[0] != sum(rows):
        return []
    places = zip(paths, one_after_another(rows), strict=True)
    return [cut(module, path, segments) for path, segments in places]


def _together(
    fused: str, parts: dict[str, LoraModule], spec: BaseModelSpec, origin: str
) -> list[LoraModule]:
    names = FUSED[fused.rpartition(".")[2]]
    rows = _rows(fused, spec)
    pairs = [parts.get(name) for name in names]
    fit = rows is not None and all(
        pair is None or pair.up.shape == (n, pair.rank) for pair, n in zip(pairs, rows, strict=True)
    )
    if rows is None or not fit:
        return [*parts.values()]
    return [joined(fused, pairs, one_after_another(rows), origin)]


def _rows(fused: str, spec: BaseModelSpec) -> list[int] | None:
    """How many rows of a fused layer each part has."""
    total, (home, _, name) = spec.modules[fused].shape[0], fused.rpartition(".")
    if name != "qkv_proj":
        return [total // 2] * 2
    # The queries' heads are what comes out of attention.
    out = spec.modules.get(f"{home}.o_proj")
    if out is None:
        return None
    others = (total - out.shape[1]) // 2
    return [out.shape[1], others, others]
