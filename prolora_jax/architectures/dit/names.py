"""What one family of diffusion transformers calls its modules: diffusers' and its authors' names.

The canonical name is diffusers': it is the finest, with q, k and v apart. The authors' own model
may hold several such modules as one, whose rows are those of the parts one after another, and has
the halves of its last modulation in the other order. Nothing is transposed, interleaved or summed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple


class Fused(NamedTuple):
    """A module of the authors' model.

    Attributes:
        original: its name there, `double_blocks.3.img_attn.qkv`.
        parts: canonical names of what its rows are, in order.
    """

    original: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class DitFamily:
    """The names of one family.

    Attributes:
        name: `flux1`.
        signs: names that give the family away, a number with a level behind it as `*`; all names
            of one of these lists have to be there.
        names: by stack there and here (both empty for what is in no stack), what a module in it is
            called here by what it is called there; several names for what is one module there. A
            name that is in no table is the same in both.
        swapped: canonical names, a number as `*`, of what has its halves the other way round there,
            where it is two halves: has twice as many rows as columns.
        kin: name of the family that its models descend from; empty where that is its own.
    """

    name: str
    signs: tuple[tuple[str, ...], ...]
    names: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict, repr=False)
    swapped: frozenset[str] = frozenset()
    kin: str = ""

    @property
    def origin(self) -> str:
        """Name of the family whose weights its models may share."""
        return self.kin or self.name

    def fits(self, signs: Iterable[str]) -> bool:
        """Whether a model with these names, numbers as `*`, is of the family."""
        there = frozenset(signs)
        return any(there.issuperset(needed) for needed in self.signs)

    def original(self, name: str) -> Fused:
        """What holds a canonical module in the authors' model."""
        stack, number, role = _split(name, self._here)
        found = self._here[stack].get(role)
        if found is None:
            return Fused(name, (name,))
        other, fused, roles = found
        parts = tuple(_joined(stack, number, part) for part in roles)
        return Fused(_joined(other, number, fused), parts)

    def canonical(self, name: str) -> tuple[str, ...]:
        """Canonical names of what the rows of the authors' module are; its own if it has no other.

        Names that are canonical already are left as they are.
        """
        stack, number, role = _split(name, self._there)
        found = self._there[stack].get(role)
        if found is None:
            return (name,)
        here, roles = found
        return tuple(_joined(here, number, part) for part in roles)

    def is_swapped(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a canonical module of this shape has its halves the other way round there."""
        stack, _, role = _split(name, self._here)
        return _joined(stack, "*", role) in self.swapped and shape[0] == 2 * shape[1]

    @cached_property
    def _here(self) -> Mapping[str, Mapping[str, tuple[str, str, tuple[str, ...]]]]:
        """By canonical stack and role: stack there, name there, all parts."""
        found: dict[str, dict[str, tuple[str, str, tuple[str, ...]]]] = {"": {}}
        for (there, here), table in self.names.items():
            roles = found.setdefault(here, {})
            for fused, parts in table.items():
                split = tuple(parts.split())
                roles |= dict.fromkeys(split, (there, fused, split))
        return found

    @cached_property
    def _there(self) -> Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]]:
        """By the authors' stack and name: stack here, all parts."""
        found: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {"": {}}
        for (there, here), table in self.names.items():
            roles = {fused: (here, tuple(parts.split())) for fused, parts in table.items()}
            found[there] = roles
        return found


def _split(name: str, stacks: Iterable[str]) -> tuple[str, str, str]:
    """Stack, number and role of a name; two empty strings before what is in none of the stacks."""
    for stack in stacks:
        if stack and name.startswith(f"{stack}."):
            number, _, role = name[len(stack) + 1 :].partition(".")
            if number.isdecimal() and role:
                return stack, number, role
    return "", "", name


def _joined(stack: str, number: str, role: str) -> str:
    return f"{stack}.{number}.{role}" if stack else role
