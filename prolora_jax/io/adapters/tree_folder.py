"""Trees of tunix and MaxText on disk: orbax folders with the factors that qwix put beside weights.

What multiplies a product is in no tree: it stands in an `adapter_config.json` that the user puts
there, or in the notes of MaxText's own trainer. Nor is it said there which model a tree of MaxText
is of, on which depends how rows of q and k lie.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from prolora_jax.adapters.formats.keys import (
    PEFT_WRAPPER,
    TREE_BLOCKS,
    TREE_CONFIG,
    TREE_ROWS,
    said_in,
)
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.architectures.llm.tree_names import MAXTEXT_MODELS, rows_of
from prolora_jax.errors import AdapterRefused, BaseModelError, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.adapters.peft_folder import (
    CONFIG,
    Tensors,
    has_others,
    new_folder,
    unfit_config,
)
from prolora_jax.io.adapters.tree_places import (
    MAXTEXT_TREE,
    TUNIX_TREE,
    Factor,
    Shape,
    TreeKind,
    rank_of,
)
from prolora_jax.io.containers.orbax_tree import (
    OrbaxTree,
    orbax_items,
    passed_over,
    write_orbax_step,
)
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import read_small

Place = tuple[str, ...]

ITEM = "model_params"
"""What tunix's manager calls the tree in each step; MaxText's own trainer calls it `items`."""
_ITEMS = frozenset({ITEM, "items"})
_METADATA, _NOTES, _MARK, _LARGEST = "_METADATA", "_CHECKPOINT_METADATA", b"_lora_a", 2**26
_HEADER, _EMPTY, _MODEL = "prolora_header", "empty", "model_name"
_MOST_NUMBERS = 2**32
"""In a factor of all blocks: more than any has at rank 4096."""
_NO_WEIGHTS = frozenset({"opt_state", "optimizer", "nnx_aux", "step"})


class _Said(NamedTuple):
    """What stands beside a tree, and where it was looked for."""

    folder: Path
    fields: Mapping[str, Any]


class TreeRead(NamedTuple):
    """What was read of a folder: tensors by key, header strings, and what is to be said of it."""

    tensors: Tensors
    metadata: dict[str, str]
    flags: tuple[str, ...]


def tree_items(folder: Path) -> Iterator[Path]:
    """The orbax trees in a folder, or in each of its steps, that have factors of qwix's.

    Args:
        folder: any.

    Yields:
        The tree's own folder, of the newest step first; none where there is none, or where it
        cannot be looked at, which whoever reads the folder as something else says.
    """
    try:
        for item in orbax_items(folder):
            if _MARK in read_small(item / _METADATA, _LARGEST):
                yield item
    except OSError:
        return


def is_tree_folder(folder: Path) -> bool:
    """Whether a folder is such a tree, or a step or a manager's folder with one, and nothing else.

    Several trees beside each other are several adapters, unless they are called as items of a step.
    """
    item = next(tree_items(folder), None)
    if item is None or item == folder:
        return item is not None
    if item.parent != folder or item.name.isdecimal():
        return True  # in a step
    return item.name in _ITEMS and not has_others(folder, item)


def tree_places(folder: Path) -> frozenset[Path]:
    """Folders in a folder that a trainer wrote there with its tree: steps, and items of a step.

    Args:
        folder: any; of one without a tree none.
    """
    items = [*tree_items(folder)]
    if not items:
        return frozenset()
    if folder in items:
        return frozenset({folder})
    beside = (place for place in folder.iterdir() if (place / _METADATA).is_file())
    return frozenset({folder / item.relative_to(folder).parts[0] for item in items}.union(beside))


def has_only_weights(folder: Path) -> bool:
    """Whether a folder has arrays of orbax's, and no factors of LoRA among them."""
    try:
        return next(tree_items(folder), None) is None and any(orbax_items(folder))
    except OSError:
        return False


def read_tree(folder: Path, items: Iterable[Path]) -> TreeRead:
    """Read such a folder; the base model's own weights beside the factors are passed over.

    Args:
        folder: that was given.
        items: its trees, from `tree_items`; the first one that can be read is.

    Returns:
        The tensors by keys of peft's, and the header strings; a configuration of peft's is one, and
        of MaxText's trees what only the base model can confirm. Flags, where a newer step is
        passed over since it is not whole.

    Raises:
        AdapterRefused: none can be read, or it has factors of other layers than are known here, or
            no alpha or model is said beside it.
    """
    failed = None
    for item in items:
        try:
            tensors, header = _read_item(folder, item)
        except BaseModelError as failure:
            failed = failed or failure
            continue
        left = passed_over(folder, item)
        return TreeRead(tensors, header, () if left is None else (left,))
    assert failed is not None  # there is an item
    raise AdapterRefused(str(failed), code=Refusal.NOT_AN_ADAPTER) from failed


def _read_item(folder: Path, item: Path) -> tuple[Tensors, dict[str, str]]:
    tree = OrbaxTree(item)
    wanted = [place for place in tree.leaves if _is_factor(place)]
    ours = any("decoder" in place for place in wanted)
    kind = MAXTEXT_TREE if ours else TUNIX_TREE
    places = {place: _factor(folder, place, kind) for place in wanted}
    shapes = _require_factors(folder, places, {p: tree.leaves[p].shape for p in places}, kind)
    read = {factor: tree.read(place) for place, factor in places.items()}
    ranks = {rank_of(factor, shape) for factor, shape in shapes.items() if factor.side == "a"}
    if len(ranks) != 1:
        found = f"ranks {', '.join(map(str, sorted(ranks)))}"
        _refuse(folder, found, "one rank, of which alpha is", "train with one rule of qwix's")
    said = _said(folder, (folder, item.parent, item))
    told = {TREE_ROWS: _rows(said)} if kind is MAXTEXT_TREE else {}
    tensors: Tensors = {}
    for factor, array in read.items():
        other = shapes.get(factor._replace(side="b" if factor.side == "a" else "a"), ())
        matrices = dict(kind.matrices(factor, array, other))
        if (
            factor.block is None
            and told.setdefault(TREE_BLOCKS, f"{len(matrices)}") != f"{len(matrices)}"
        ):
            found = f"arrays of {told[TREE_BLOCKS]} and of {len(matrices)} blocks"
            _refuse(folder, found, "one number of blocks", "fetch the folder again")
        for layer, matrix in matrices.items():
            tensors[_key(layer, factor.side)] = matrix
    _leave_empty(tensors, said.fields.get(_EMPTY))
    config, header = _config(said, ranks.pop(), read)
    return tensors, header | told | {HEADER_KEY: json.dumps(config)}


def _key(layer: str, side: str) -> str:
    return f"{PEFT_WRAPPER}{layer}.lora_{side.upper()}.weight"


def _leave_empty(tensors: Tensors, layers: object) -> None:
    """Leave out what was written as zeros for a block without an update, if it still is zero."""
    for layer in layers if isinstance(layers, list) else ():
        up = tensors.get(_key(str(layer), "b"))
        if up is not None and not up.any():
            del tensors[_key(str(layer), "a")], tensors[_key(str(layer), "b")]


def write_tree(
    folder: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a step of tunix's manager, and beside it what the tree does not say.

    Args:
        folder: where to.
        tensors: from `formats.dump` for format `tunix` or `maxtext`.
        metadata: header strings, what is said beside the tree among them.

    Raises:
        OutputError: it cannot be written.
    """
    header = {key: text for key, text in metadata.items() if key != TREE_CONFIG}
    fields = json.loads(metadata[TREE_CONFIG]) | {_HEADER: header}
    tree: dict[str, Any] = {}
    for place, array in tensors.items():
        *levels, last = place.split("/")
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[last] = np.ascontiguousarray(array)
    with new_folder(folder) as place:
        write_orbax_step(place, ITEM, tree)
        atomic.write_text(place / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _is_factor(place: Place) -> bool:
    if place and place[0] in _NO_WEIGHTS:
        return False  # an optimizer's moments have the factors' names
    return any(name.endswith(("_lora_a", "_lora_b")) for name in place)


def _factor(folder: Path, place: Place, kind: TreeKind) -> Factor:
    """What is at a place: its layer by transformers' name, and which factor it is."""
    name = ".".join(place).removesuffix(".value")
    found = kind.factor(name)
    if found is None:
        remedy = "move it with the base model merged"
        _refuse(folder, f"a factor at {name}", kind.known, remedy)
    return found


def _require_factors(
    folder: Path, places: Mapping[Place, Factor], shapes: Mapping[Place, Shape], kind: TreeKind
) -> dict[Factor, Shape]:
    """Refuse what is no factor, before any is read: an array may be as large as its header says."""
    seen: dict[Factor, Place] = {}
    for place, factor in places.items():
        name, shape = f"{factor.layer()}: found a factor {factor.side}", shapes[place]
        other = seen.setdefault(factor, place)
        if other != place:
            found = f"{name} at {'.'.join(other)} and at {'.'.join(place)}"
            _refuse(folder, found, "it once", "fetch the folder again")
        if len(shape) not in {2, 3} or not 0 < math.prod(shape) <= _MOST_NUMBERS:
            axes = f"axes as in {kind.known}, none of 0, and at most {_MOST_NUMBERS} numbers"
            _refuse(folder, f"{name} in shape {shape}", axes, "fetch it again")
    known = {factor: shapes[place] for factor, place in seen.items()}
    twice = next((f for f in seen if f.block is not None and f._replace(block=None) in seen), None)
    if twice is not None:
        found = f"{twice.layer()} in an array of all blocks and in one of its own"
        _refuse(folder, found, "it once", "train with scan_layers or without")
    misfit = kind.misfit(known)
    if misfit is not None:
        _refuse(folder, *misfit, "fetch it again")
    return known


def _said(folder: Path, places: Iterable[Path]) -> _Said:
    """What the configuration beside a tree says; MaxText's notes, where it says no alpha."""
    fields: Any = {}
    for place in places:
        if (place / CONFIG).is_file():
            fields = _document(place / CONFIG)
            break
    fields = fields if isinstance(fields, dict) else {}
    for place in places:
        notes = _document(place / _NOTES) if (place / _NOTES).is_file() else {}
        own = notes.get("custom_metadata") if isinstance(notes, dict) else None
        lora = own.get("lora") if isinstance(own, dict) else None
        if isinstance(lora, dict) and "lora_alpha" in lora:
            fields = {"lora_alpha": lora["lora_alpha"]} | fields
    return _Said(folder, fields)


def _document(file: Path) -> Any:
    try:
        return read_json_document(file)
    except (OSError, BadDocument) as failure:
        raise unfit_config(file, failure) from failure


def _rows(said: _Said) -> str:
    """How rows of q and k lie in the model that the configuration names."""
    name = said.fields.get(_MODEL)
    rows = rows_of(name)
    if rows is None:
        _refuse(
            said.folder,
            f"factors of MaxText's, and {_MODEL} {name!r:.60}"
            if name is not None
            else "factors of MaxText's, and nowhere which of its models they were trained on",
            f"{_MODEL} in an {CONFIG} in this folder, one of {MAXTEXT_MODELS}, whose rows of q and "
            f"k are known here",
            f'write {{"{_MODEL}": ..., "lora_alpha": ...}} there, as they were given to MaxText',
        )
    return rows


def _config(
    said: _Said, rank: int, factors: Iterable[Factor]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration as peft would have written it, and the header strings that we had written."""
    own = {_MODEL, _HEADER, _EMPTY}
    fields = {key: value for key, value in said.fields.items() if key not in own}
    alpha = fields.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        _refuse(
            said.folder,
            "factors of qwix's, and nowhere the alpha that they were trained with",
            f"lora_alpha in an {CONFIG} in this folder",
            'write {"lora_alpha": ...} there, with the alpha of qwix\'s rule',
        )
    if fields.get("r", rank) != rank:
        found = f"r {fields['r']!r:.40} in {CONFIG}"
        _refuse(said.folder, found, f"{rank}, as the factors have it")
    modules = sorted({factor.role.rpartition(".")[2] for factor in factors})
    usual = {"peft_type": "LORA", "target_modules": modules, "task_type": "CAUSAL_LM"}
    header = said.fields.get(_HEADER)
    kept = header if isinstance(header, dict) else {}
    strings = said_in({key: text for key, text in kept.items() if isinstance(text, str)})
    return usual | fields | {"r": rank}, strings


def _refuse(folder: Path, found: str, expected: str, remedy: str = "correct it") -> NoReturn:
    found = found if "found" in found else f"found {found}"
    raise AdapterRefused(
        f"{folder}: {found}; expected {expected}; {remedy}", code=Refusal.NOT_AN_ADAPTER
    )
