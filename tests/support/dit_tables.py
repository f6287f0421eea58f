"""Key tables of diffusion transformers, and where diffusers' own converters put each weight.

`tests/data/dit_tables.json.gz` was written by programs: the shapes by building diffusers' class and
an independent one with the authors' names on the meta device, the maps by pushing numbered rows
through diffusers' checkpoint converters. Weights of two dimensions or more, without `.weight`.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

_FILE = Path(__file__).resolve().parents[1] / "data" / "dit_tables.json.gz"


@cache
def _tables() -> Mapping[str, Any]:
    return json.loads(gzip.decompress(_FILE.read_bytes()))


BASES: tuple[str, ...] = tuple(_tables()["bases"])
MAPPED: tuple[str, ...] = tuple(name for name in BASES if "map" in _tables()["bases"][name])
TINY: tuple[str, ...] = tuple(_tables()["tiny"])


def table(base: str, naming: str = "diffusers") -> dict[str, tuple[int, ...]]:
    """Shape by module name of a base; `naming` is `diffusers` or `original`."""
    return {name: tuple(shape) for name, shape in _tables()["bases"][base][naming].items()}


def header(shapes: Shapes, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The same as keys of a file."""
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def modules(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Those that an adapter could touch: no convolution over time."""
    return {name: shape for name, shape in shapes.items() if len(shape) in {2, 4}}


def tiny(name: str) -> dict[str, tuple[int, ...]]:
    """Shape by key, of all tensors of a toy net."""
    return {key: tuple(shape) for key, shape in _tables()["tiny"][name].items()}


def places(base: str) -> Iterator[tuple[str, str, tuple[tuple[int, int], ...] | None]]:
    """(diffusers' name, name of the original weight, its rows there) of every weight of a base."""
    for entry in _tables()["bases"][base]["map"]:
        numbers = entry.get("i", [0, 1])
        for number in range(*numbers) if len(numbers) == 2 else numbers:
            where = entry["original"]
            rows = None if isinstance(where, str) else tuple((a, b) for _, a, b in where)
            name = where if isinstance(where, str) else where[0][0]
            yield (
                entry["diffusers"].replace("{i}", str(number)),
                name.replace("{i}", str(number)),
                rows,
            )


def depth_map(name: str) -> list[int]:
    """Source block of each target block: `flux1 19->8 (flex)`, `anima 28->40`, ..."""
    return _tables()["depth_maps"][name]["target_to_source"]


def in_original_naming(
    tensors: Mapping[str, np.ndarray], base: str, width: int
) -> dict[str, np.ndarray]:
    """A toy net's weights under its authors' names, put where diffusers' map of `base` has them.

    Args:
        tensors: by diffusers' key, of a net `width` wide with the proportions and no more blocks
            than `base` has; those that the map does not know are left out.
        base: which base's map.
        width: of the toy net.
    """
    queries = "attn.to_q", "attn1.to_q"
    full = next(shape[1] for name, shape in table(base).items() if name.endswith(queries))
    rows: dict[str, list[tuple[int, np.ndarray]]] = {}
    for name, original, segments in places(base):
        if f"{name}.weight" not in tensors:
            continue
        weight, at = tensors[f"{name}.weight"], 0
        for first, end in segments or ((0, len(weight) * full // width),):
            count = (end - first) * width // full
            rows.setdefault(f"{original}.weight", []).append(
                (first * width // full, weight[at : at + count])
            )
            at += count
    return {
        key: np.concatenate([part for _, part in sorted(parts, key=lambda pair: pair[0])])
        for key, parts in rows.items()
    }


def weights(shapes: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of these shapes, by the same keys."""
    random = np.random.default_rng(seed)
    return {key: random.standard_normal(shape, np.float32) for key, shape in shapes.items()}
