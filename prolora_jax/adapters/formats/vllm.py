"""A folder of peft's for vLLM: it reads less of a configuration than peft does.

Its scale is `lora_alpha / r` of the whole adapter: it knows no patterns, and of tensors only pairs
of factors, with one rank that is padded to what its server was started for.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.folding import fold_scales
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import ALONE, LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What its servers may be started with as `--max-lora-rank`."""


class NotForVllm(AdapterRefused):
    """Raised for what vLLM does not read."""

    def __init__(self, adapter: Adapter, place: str, found: str, hint: str):
        super().__init__(
            f"{adapter.origin}: {place}: found {found}, which vLLM does not read; expected pairs "
            f"of factors of a language model's layers; {hint}",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )


def max_lora_rank(ranks: Iterable[int]) -> int | None:
    """The least of `RANKS` that holds an adapter; None where none does."""
    largest = max(ranks, default=0)
    return next((rank for rank in RANKS if rank >= largest), None)


def started_with(ranks: Iterable[int]) -> str:
    """What a server has to be started with for an adapter of these ranks, in words."""
    return f"vLLM reads it when started with --max-lora-rank {max_lora_rank(ranks)} or more"


def require_pairs_alone(adapter: Adapter) -> None:
    """Refuse tensors beside the pairs, but what has no effect or may stay behind.

    Raises:
        NotForVllm: there is one.
    """
    for companion in adapter.companions:
        if companion.part not in {"none", "layer"}:  # these may stay behind, or were refused before
            hint = "leave it behind (--exclude), or train without it"
            raise NotForVllm(
                adapter, companion.key, f"a tensor beside the pairs: {companion.part}", hint
            )


def for_vllm(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """The same updates as vLLM reads them: one rank, and an alpha that is the rank.

    Args:
        adapter: resolved.
        spec: the base model that it is for.

    Returns:
        An adapter whose configuration has no patterns; experts one by one.

    Raises:
        NotForVllm: there is more in it than pairs of layers, or a rank that no server takes.
    """
    for module in adapter.structured:
        hint = "make a plain LoRA of it (--to lora, or of migrate --dora fold)"
        raise NotForVllm(adapter, module.path, f"a module of {module.algorithm}", hint)
    require_pairs_alone(adapter)
    for module in adapter.modules:
        if is_embedding(module.path):
            hint = "leave it behind (--exclude '*embed_tokens')"
            raise NotForVllm(adapter, module.path, "the pair of an embedding", hint)
        if not module.path.startswith(LM):
            raise NotForVllm(adapter, module.path, "a layer of no language model", "write peft")
    if max_lora_rank(adapter.ranks) is None:
        largest = max(adapter.modules, key=lambda module: module.rank)
        found = f"rank {largest.rank} of at most {RANKS[-1]}"
        raise NotForVllm(adapter, largest.path, found, f"cut it with --rank {RANKS[-1]}")
    rank = max(adapter.ranks)
    modules = (_one_rank(module, rank) for module in fold_scales(adapter).modules)
    metadata = {key: text for key, text in adapter.metadata.items() if key != HEADER_KEY}
    said = json.loads(adapter.metadata.get(HEADER_KEY, "{}"))
    name = {key: said[key] for key in said if key.endswith("base_model_name_or_path")}
    return replace(
        adapter, modules=tuple(modules), metadata=metadata | {HEADER_KEY: json.dumps(name)}
    )


def configured(text: str, adapter: Adapter, spec: BaseModelSpec) -> str:
    """A configuration whose target modules are the last names of layers, where that is exact.

    That is where the adapter has all layers of the base model that end so. In one that also sees,
    layers of pictures end so, too, and are none here: their names stay as they are.

    Args:
        text: as `peft.configuration` writes it.
        adapter: that it is of.
        spec: the base model that it is for.
    """
    if spec.lm_level != ALONE:
        return text
    fields: Mapping[str, object] = json.loads(text)
    own = {module.path for module in adapter.modules}
    ends = {path.rpartition(".")[2] for path in own}
    whole = {
        end
        for end in ends
        if all(path in own for path in spec.modules if path.rpartition(".")[2] == end)
    }
    names = {path.partition(".")[2] for path in own if path.rpartition(".")[2] not in whole}
    return json.dumps({**fields, f"{LM}target_modules": sorted(whole | names)})


def _one_rank(module: LoraModule, rank: int) -> LoraModule:
    return replace(module.padded(rank), alpha=float(rank))
