"""EasyDeL's checkpoints: a whole model, and beside the kernels that were adapted their factors.

The update of a kernel `(in, out)` is `a b`, with no scale; layers have transformers' names, and
rows its order. Source: EasyDeL 0.3.0 (`layers/linears/_lora.py`, `infra/utils.py`,
`infra/mixins/bridge.py`), run by hand for the models that are known here.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.errors import AdapterRefused, BaseModelError, Refusal
from prolora_jax.io.adapters.peft_folder import Tensors, unfit_config
from prolora_jax.io.containers.indexed_tree import IndexedTree, is_indexed
from prolora_jax.io.documents import BadDocument, read_json_document

_CONFIG = "config.json"
_KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_MOST_NUMBERS = 2**30
"""In a factor: more than any layer of these models has at rank 4096."""
_SIDES = {"lora_a": "A", "lora_b": "B"}


def is_easydel_folder(folder: Path) -> bool:
    """Whether a folder is a checkpoint of EasyDeL's; its model may have no factors."""
    return is_indexed(folder) and (folder / _CONFIG).is_file()


def read_easydel(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """Read the factors of such a checkpoint; the base model's weights are passed over.

    Args:
        folder: `is_easydel_folder`.

    Returns:
        The tensors by keys of peft's, and the header strings; a configuration of peft's is one.

    Raises:
        AdapterRefused: it cannot be read, has no factors, or is of another model than is known.
    """
    _require_known(folder)
    try:
        tree = IndexedTree(folder)
        _require_pairs(folder, {place: leaf.shape for place, leaf in tree.leaves.items()})
        read = {place: tree.read(place) for place in tree.leaves}
    except BaseModelError as failure:
        raise AdapterRefused(str(failure), code=Refusal.NOT_AN_ADAPTER) from failure
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    for (*levels, side), array in read.items():
        layer = ".".join(levels)
        tensors[f"{PEFT_WRAPPER}{layer}.lora_{_SIDES[side]}.weight"] = array.T
        ranks.setdefault(layer, array.shape[-1 if side == "lora_a" else 0])
    return tensors, {HEADER_KEY: json.dumps(_config(ranks))}


def _require_known(folder: Path) -> None:
    try:
        said = read_json_document(folder / _CONFIG)
    except (OSError, BadDocument) as failure:
        raise unfit_config(folder / _CONFIG, failure) from failure
    kind = said.get("model_type") if isinstance(said, dict) else None
    if kind not in _KNOWN:
        _refuse(
            folder,
            f"model_type {kind!r:.60} in {_CONFIG}",
            f"one of {', '.join(sorted(_KNOWN))}, whose layers in EasyDeL are known here",
            "have EasyDeL merge the adapter, and move what transformers reads",
        )


def _require_pairs(folder: Path, shapes: dict[tuple[str, ...], tuple[int, ...]]) -> None:
    """Refuse what is no pair, before any is read: an array may be as large as its header says."""
    if not shapes:
        remedy = "name a checkpoint of the training, or _resume_model in one that was merged"
        _refuse(folder, "a model of EasyDeL's without factors", "lora_a and lora_b", remedy)
    for *levels, side in shapes:
        a, b = (shapes.get((*levels, name), ()) for name in _SIDES)
        fit = len(a) == len(b) == 2 and a[1] == b[0] and min(*a, *b) > 0
        if not fit or max(math.prod(a), math.prod(b)) > _MOST_NUMBERS:
            found = f"{'.'.join(levels)}: found {side} of a pair in shapes {a} and {b}"
            _refuse(folder, found, "(in, rank) and (rank, out)", "copy the folder again")


def _config(ranks: dict[str, int]) -> dict[str, Any]:
    """As peft would have written it: alpha is the rank, whatever the rank of a layer."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {layer: rank for layer, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in ranks}),
    }


def _refuse(folder: Path, found: str, expected: str, remedy: str) -> NoReturn:
    found = found if "found" in found else f"found {found}"
    raise AdapterRefused(
        f"{folder}: {found}; expected {expected}; {remedy}", code=Refusal.NOT_AN_ADAPTER
    )
