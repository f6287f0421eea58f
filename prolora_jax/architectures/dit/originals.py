"""Where a diffusion transformer's modules are in its authors' model: which rows of which weight.

Adapters and single files name modules as the authors do. The rows follow from the shapes: they are
those of the parts one after another, or of two halves in the other order.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from prolora_jax.architectures.dit.families import dit_family
from prolora_jax.architectures.dit.names import DitFamily
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS

Segments = tuple[tuple[int, int], ...]
"""First row and end of each run of rows, in the order in which they make up a weight."""


class OriginalPart(NamedTuple):
    """Where a module's weight is in the authors' model.

    Attributes:
        name: of the module there, without prefix: `double_blocks.0.img_attn.qkv`.
        segments: its rows there; two are swapped halves, None is all of them in their order.
    """

    name: str
    segments: Segments | None


def originals(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, OriginalPart]:
    """Where the modules of a base model are in the naming of its authors.

    Args:
        shapes: of all its modules, `(out, in, ...)`, by canonical path with component.

    Returns:
        Place by path, for every module of a diffusion transformer of a known family; the rest of
        the model is left out. A module that has no other name there is named as it is here.
    """
    found: dict[str, OriginalPart] = {}
    for component, paths in groupby(sorted(shapes), key=lambda path: path.partition(".")[0]):
        if component not in DIT_COMPONENTS:
            continue
        inside = {path.partition(".")[2]: shapes[path] for path in paths}
        family = dit_family(inside)
        if family is not None:
            found |= {f"{component}.{name}": part for name, part in _parts(family, inside)}
    return found


def _parts(
    family: DitFamily, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, OriginalPart]]:
    for name, shape in shapes.items():
        fused, names = family.original(name)
        if family.is_swapped(name, shape):
            yield name, OriginalPart(fused, halves_swapped(shape[0]))
        elif len(names) == 1:
            yield name, OriginalPart(fused, None)
        elif all(one in shapes for one in names):
            ends = (0, *accumulate(shapes[one][0] for one in names))
            first, end = list(pairwise(ends))[names.index(name)]
            yield name, OriginalPart(fused, ((first, end),))


def halves_swapped(rows: int) -> Segments:
    """The rows of a weight with its second half before its first."""
    half = rows // 2
    return ((half, rows), (0, half))


def fused_rows(count: int, shape: tuple[int, ...]) -> Segments | None:
    """Which rows of a fused weight its parts have, as far as its shape tells.

    Queries have as many rows as the weight has columns, keys and values share what is left of
    attention, and what follows is a layer of its own.

    Args:
        count: of parts: k and v; q, k and v; or these and the first layer of the MLP.
        shape: of the fused weight, `(out, in)`.

    Returns:
        A run of rows for each part; None where the rows cannot be those of so many parts.
    """
    rows, width = shape[0], shape[1]
    if count == 2:
        sizes = (rows // 2,) * 2
    elif count == 3:
        sizes = (width, *((rows - width) // 2,) * 2)
    else:
        sizes = (width, width, width, rows - 3 * width)
    if sum(sizes) != rows or min(sizes) < 1:
        return None
    return tuple(pairwise((0, *accumulate(sizes))))
