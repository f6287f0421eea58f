"""Which published UNet another one is nearest to, and in which places the two differ.

An LCM has one layer more than the model that it was distilled from, an inpainting model a wider
first convolution. All their blocks are those of the published model, and so their adapters and
text encoders are. Blocks decide, therefore, and have to agree in every name and shape: a depth or
a width that is close is another model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from prolora_jax.architectures.unet.stacks import DIRECTIONS

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by path without component (`down_blocks.0.resnets.0.conv1`) of a UNet's modules."""

Blocks = frozenset[tuple[str, tuple[int, ...]]]

ADDED = ("fuser", "processor", "motion_modules")
"""Levels of paths in what programs put between the layers of a block: boxes with words (GLIGEN),
image prompts (IP-Adapter), movement (AnimateDiff)."""

# Places that say nothing of the text: what goes in and comes out, times, classes and pictures.
_NOT_TEXT = (
    *("conv_in", "conv_out", "time_embedding", "class_embedding", "position_net"),
    "encoder_hid_proj.image_projection_layers",
)


@dataclass(frozen=True)
class Likeness:
    """A published UNet that another one is like, block by block.

    Attributes:
        family: id of the published UNet.
        differences: where the two differ, in words; () when they are the same.
        same_text: whether no difference is in a place that text goes through.
    """

    family: str
    differences: tuple[str, ...] = ()
    same_text: bool = True


class Families:
    """Published UNets to hold others against.

    Args:
        published: modules by id.
    """

    def __init__(self, published: Mapping[str, Shapes]):
        self._by_blocks: dict[Blocks, dict[str, Shapes]] = {}
        for name, modules in published.items():
            blocks, beside, _ = _split(modules)
            self._by_blocks.setdefault(blocks, {})[name] = beside

    def nearest(self, modules: Shapes) -> tuple[Likeness, ...]:
        """The published UNets with the same blocks that differ in the fewest places.

        Args:
            modules: of the UNet in question.

        Returns:
            One when it is clear; several when they are equally near; none when no published UNet
            has these blocks.
        """
        blocks, beside, added = _split(modules)
        known = self._by_blocks.get(blocks, {})
        found = [_likeness(name, published, beside, added) for name, published in known.items()]
        least = min((len(likeness.differences) for likeness in found), default=0)
        return tuple(likeness for likeness in found if len(likeness.differences) == least)


def _split(modules: Shapes) -> tuple[Blocks, Shapes, frozenset[str]]:
    """Modules inside of blocks; those beside the blocks; and what was added to the blocks."""
    blocks, beside, added = [], {}, set()
    for path, shape in modules.items():
        if not path.startswith(DIRECTIONS):
            beside[path] = shape
        elif (extra := _added(path)) is not None:
            added.add(extra)
        else:
            blocks.append((path, shape))
    return frozenset(blocks), beside, frozenset(added)


def _added(path: str) -> str | None:
    return next((level for level in ADDED if f".{level}." in path), None)


def _likeness(family: str, published: Shapes, found: Shapes, added: Iterable[str]) -> Likeness:
    extra = [path for path in found if path not in published]
    changed = [path for path in published if published[path] != found.get(path)]
    words = [
        *_extra(extra),
        *(_change(path, published[path], found.get(path)) for path in changed),
        *(f"extra {level} in the blocks of unet" for level in sorted(added)),
    ]
    return Likeness(family, tuple(words), not any(map(_touches_text, (*extra, *changed))))


def _extra(paths: Iterable[str]) -> Iterator[str]:
    """The layers that only one UNet has, in as few words as there are parts with such layers."""
    for part, inside in groupby(sorted(paths), key=lambda path: path.partition(".")[0]):
        first, *more = inside
        yield f"extra unet.{part} ({1 + len(more)} layers)" if more else f"extra unet.{first}"


def _change(path: str, published: tuple[int, ...], found: tuple[int, ...] | None) -> str:
    if found is None:
        return f"no unet.{path}"
    if (found[:1], found[2:]) == (published[:1], published[2:]):
        return f"unet.{path} takes {found[1]} channels, not {published[1]}"
    return f"unet.{path} has shape {found}, not {published}"


def _touches_text(path: str) -> bool:
    return not any(path == place or path.startswith(f"{place}.") for place in _NOT_TEXT)
