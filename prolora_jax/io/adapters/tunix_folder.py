"""What tunix's trainer leaves: an orbax folder with the factors that qwix put beside the weights.

Llama 3, Qwen 2 and Qwen 3 have the layers of transformers there, under the same names, and rows in
the same order; heads have an axis of their own. A factor is named after its weight, `w_lora_a` of
attention, `kernel_lora_a` of an MLP. The update of a layer is `alpha / rank * a b`, and alpha is in
no file: it has to stand in an `adapter_config.json` that the user puts there.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.errors import AdapterRefused, BaseModelError, Refusal
from prolora_jax.io.adapters.peft_folder import CONFIG, Tensors, unfit_config
from prolora_jax.io.containers.orbax_tree import OrbaxTree, orbax_item
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import read_small

Place = tuple[str, ...]

_METADATA, _MARK, _LARGEST = "_METADATA", b"_lora_a", 2**26
_PLACE = re.compile(
    r"layers\.(\d+)\.(?:(attn)\.([qkvo]_proj)\.w|(mlp)\.((?:gate|up|down)_proj)\.kernel)_lora_([ab])"
)
_BLOCKS = {"attn": "self_attn", "mlp": "mlp"}
_MOST_NUMBERS = 2**28
"""In a factor: a gigabyte, and more than any layer of these families has at rank 4096."""
_KNOWN = "layers of tunix's Llama 3, Qwen 2 and Qwen 3"


class _Factor(NamedTuple):
    """A place in the tree: its layer, and which factor of it."""

    layer: str
    side: str


def tunix_item(folder: Path) -> Path | None:
    """The orbax tree in a folder, or in its newest step, that has factors of qwix's.

    Args:
        folder: any.

    Returns:
        The tree's own folder; None where there is none, or where it cannot be looked at, which
        whoever reads the folder as something else says.
    """
    try:
        item = orbax_item(folder)
        found = item is not None and _MARK in read_small(item / _METADATA, _LARGEST)
    except OSError:
        return None
    return item if found else None


def read_tunix(folder: Path, item: Path) -> tuple[Tensors, dict[str, str]]:
    """Read such a folder; the base model's own weights beside the factors are passed over.

    Args:
        folder: that was given.
        item: its tree, from `tunix_item`.

    Returns:
        The tensors by keys of peft's, and the header strings; a configuration of peft's is one.

    Raises:
        AdapterRefused: it cannot be read, has factors of other layers than are known here, or no
            alpha is beside it.
    """
    try:
        tree = OrbaxTree(item)
        places = {place: _factor(folder, place) for place in tree.leaves if _is_factor(place)}
        _require_factors(folder, places, {place: tree.leaves[place].shape for place in places})
        read = {factor: tree.read(place) for place, factor in places.items()}
    except BaseModelError as failure:
        raise AdapterRefused(str(failure), code=Refusal.NOT_AN_ADAPTER) from failure
    tensors, ranks = {}, set()
    for factor, array in read.items():
        rank, matrix = _matrix(factor, array)
        ranks.add(rank)
        letter = factor.side.upper()
        tensors[f"{PEFT_WRAPPER}{factor.layer}.lora_{letter}.weight"] = matrix
    if len(ranks) != 1:
        found = f"ranks {', '.join(map(str, sorted(ranks)))}"
        _refuse(folder, found, "one rank, of which alpha is", "train with one rule of qwix's")
    config = _config((folder, item.parent, item), folder, ranks.pop(), read)
    return tensors, {HEADER_KEY: json.dumps(config)}


def _is_factor(place: Place) -> bool:
    return any(name.endswith(("_lora_a", "_lora_b")) for name in place)


def _factor(folder: Path, place: Place) -> _Factor:
    """The layer of a place by transformers' name, and which factor it is."""
    name = ".".join(place).removesuffix(".value")
    found = _PLACE.fullmatch(name)
    if found is None:
        _refuse(folder, f"a factor at {name}", _KNOWN, "move it with the base model merged")
    number, attention, projection, mlp, linear, side = found.groups()
    block = _BLOCKS[attention or mlp]
    return _Factor(f"model.layers.{number}.{block}.{projection or linear}", side)


def _require_factors(
    folder: Path, places: Mapping[Place, _Factor], shapes: Mapping[Place, tuple[int, ...]]
) -> None:
    """Refuse what is no factor, before any is read: an array may be as large as its header says."""
    seen: dict[_Factor, Place] = {}
    for place, factor in places.items():
        name, shape = f"{factor.layer}: found a factor {factor.side}", shapes[place]
        other = seen.setdefault(factor, place)
        if other != place:
            found = f"{name} at {'.'.join(other)} and at {'.'.join(place)}"
            _refuse(folder, found, "it once", "fetch the folder again")
        axes = 2 + _has_heads(factor)
        if len(shape) != axes or not 0 < math.prod(shape) <= _MOST_NUMBERS:
            found, wanted = f"{name} in shape {shape}", f"{axes} axes, as in {_KNOWN}, none of 0"
            _refuse(folder, found, f"{wanted}, and at most {_MOST_NUMBERS} numbers", "fetch it")


def _has_heads(factor: _Factor) -> bool:
    """Whether a factor has an axis for heads beside that for their numbers."""
    ends = ".o_proj" if factor.side == "a" else (".q_proj", ".k_proj", ".v_proj")
    return factor.layer.endswith(ends)


def _matrix(factor: _Factor, array: np.ndarray) -> tuple[int, np.ndarray]:
    """The rank of a factor, and the factor as peft has it: `(rank, in)`, or `(out, rank)`."""
    if factor.side == "a":
        rank = array.shape[-1]
        return rank, array.reshape(-1, rank).T
    return len(array), array.reshape(len(array), -1).T


def _config(
    places: Iterable[Path], folder: Path, rank: int, factors: Iterable[_Factor]
) -> dict[str, Any]:
    """What the configuration beside the factors says, as peft would have written it."""
    file = next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)
    fields: Any = {}
    if file is not None:
        try:
            fields = read_json_document(file)
        except (OSError, BadDocument) as failure:
            raise unfit_config(file, failure) from failure
    alpha = fields.get("lora_alpha") if isinstance(fields, dict) else None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        _refuse(
            folder,
            "factors of tunix's, and nowhere the alpha that they were trained with",
            f"lora_alpha in a {CONFIG} in this folder",
            'write {"lora_alpha": ...} there, with the alpha of qwix\'s rule',
        )
    if fields.get("r", rank) != rank:
        _refuse(folder, f"r {fields['r']!r:.40} in {CONFIG}", f"{rank}, as the factors have it")
    modules = sorted({factor.layer.rpartition(".")[2] for factor in factors})
    usual = {"peft_type": "LORA", "target_modules": modules, "task_type": "CAUSAL_LM"}
    return usual | fields | {"r": rank}


def _refuse(folder: Path, found: str, expected: str, remedy: str = "correct it") -> NoReturn:
    found = found if "found" in found else f"found {found}"
    raise AdapterRefused(
        f"{folder}: {found}; expected {expected}; {remedy}", code=Refusal.NOT_AN_ADAPTER
    )
