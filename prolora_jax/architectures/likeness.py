"""Which published model another one is nearest to, and in which places the two differ.

An LCM has one layer more than the model that it was distilled from, an inpainting model a wider
first layer. All their blocks are those of the published model, and so their adapters and
text encoders are. Blocks decide, therefore, and have to agree in every name and shape: a depth or
a width that is close is another model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by path without component (`down_blocks.0.resnets.0.conv1`) of a model's modules."""

Blocks = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Surroundings:
    """What decides which model one is, and what may differ.

    Attributes:
        component: what the models are: `unet`, `transformer`.
        blocks: starts of the paths that are inside of blocks.
        added: levels of paths in what programs put between the layers of a block.
        not_text: places that say nothing of the text.
    """

    component: str
    blocks: tuple[str, ...]
    added: tuple[str, ...] = ()
    not_text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likeness:
    """A published model that another one is like, block by block.

    Attributes:
        family: id of the published model.
        differences: where the two differ, in words; () when they are the same.
        same_text: whether no difference is in a place that text goes through.
    """

    family: str
    differences: tuple[str, ...] = ()
    same_text: bool = True


class Families:
    """Published models to hold others against.

    Args:
        published: modules by id.
        surroundings: what may differ.
    """

    def __init__(self, published: Mapping[str, Shapes], surroundings: Surroundings):
        self._around = surroundings
        self._by_blocks: dict[Blocks, dict[str, Shapes]] = {}
        for name, modules in published.items():
            blocks, beside, _ = _split(modules, self._around)
            self._by_blocks.setdefault(blocks, {})[name] = beside

    def nearest(self, modules: Shapes) -> tuple[Likeness, ...]:
        """The published models with the same blocks that differ in the fewest places.

        Args:
            modules: of the model in question.

        Returns:
            One when it is clear; several, in the order of the table, when they are equally near;
            none when no published model has these blocks.
        """
        blocks, beside, added = _split(modules, self._around)
        known = self._by_blocks.get(blocks, {})
        found = [
            _likeness(name, (published, beside), added, self._around)
            for name, published in known.items()
        ]
        least = min((len(likeness.differences) for likeness in found), default=0)
        return tuple(likeness for likeness in found if len(likeness.differences) == least)


def _split(modules: Shapes, around: Surroundings) -> tuple[Blocks, Shapes, frozenset[str]]:
    """Modules inside of blocks; those beside the blocks; and what was added to the blocks."""
    blocks, beside, added = [], {}, set()
    for path, shape in modules.items():
        if not path.startswith(around.blocks):
            beside[path] = shape
        elif (extra := _added(path, around.added)) is not None:
            added.add(extra)
        else:
            blocks.append((path, shape))
    return frozenset(blocks), beside, frozenset(added)


def _added(path: str, levels: Iterable[str]) -> str | None:
    return next((level for level in levels if f".{level}." in path), None)


def _likeness(
    family: str, both: tuple[Shapes, Shapes], added: Iterable[str], around: Surroundings
) -> Likeness:
    published, found = both
    component = around.component
    extra = [path for path in found if path not in published]
    changed = [path for path in published if published[path] != found.get(path)]
    words = [
        *_extra(component, extra),
        *(_change(f"{component}.{p}", published[p], found.get(p)) for p in changed),
        *(f"extra {level} in the blocks of {component}" for level in sorted(added)),
    ]
    touched = any(_touches_text(path, around.not_text) for path in (*extra, *changed))
    return Likeness(family, tuple(words), not touched)


def _extra(component: str, paths: Iterable[str]) -> Iterator[str]:
    """The layers that only one model has, in as few words as there are parts with such layers."""
    for part, inside in groupby(sorted(paths), key=lambda path: path.partition(".")[0]):
        first, *more = inside
        where = f"{component}.{part} ({1 + len(more)} layers)" if more else f"{component}.{first}"
        yield f"extra {where}"


def _change(path: str, published: tuple[int, ...], found: tuple[int, ...] | None) -> str:
    if found is None:
        return f"no {path}"
    if (found[:1], found[2:]) == (published[:1], published[2:]):
        return f"{path} takes {found[1]} channels, not {published[1]}"
    return f"{path} has shape {found}, not {published}"


def _touches_text(path: str, not_text: Iterable[str]) -> bool:
    return not any(path == place or path.startswith(f"{place}.") for place in not_text)
