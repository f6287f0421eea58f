"""A source module and the target module that it feeds."""

from collections.abc import Mapping
from typing import NamedTuple


class ModulePair(NamedTuple):
    """Paths of two modules of one shape, in the source and in the target base model."""

    source: str
    target: str


def module_pairs(sources: Mapping[str, str]) -> list[ModulePair]:
    """The pairs of a table of source paths by target path, in its order."""
    return [ModulePair(source, target) for target, source in sources.items()]
