"""Stacks: what a family numbers (`transformer_blocks.3`), and where a module stands among them.

`unet.down_blocks.2.attentions.0.transformer_blocks.3.attn1.to_q` is the role `attn1.to_q` of part 3
of a stack inside part 0 of a stack inside part 2 of a stack of the component `unet`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from prolora_jax.architectures.families import STACKS
from prolora_jax.architectures.stack import Stack

Roles = dict[str, str]
"""Module path by role: what the module is called inside its part."""


@dataclass(frozen=True)
class Step:
    """One level of a place: a stack, and the number of the part in it."""

    stack: Stack
    number: int

    def under(self, path: str) -> str:
        """Path of the part, below the path of what holds its stack."""
        return f"{path}.{self.stack.name}" + ("" if self.stack.single else f".{self.number}")


@dataclass(frozen=True)
class Place:
    """Where a module stands; `kind` and `role` name it wherever its part stands.

    Attributes:
        component: `unet`, `lm`, ...
        steps: from the outermost stack to the innermost.
        role: what the module is called inside the innermost part.
    """

    component: str
    steps: tuple[Step, ...]
    role: str

    @property
    def kind(self) -> tuple[str, ...]:
        """What modules have in common that could stand for each other, beside role and shape."""
        return tuple(step.stack.kind or step.stack.name for step in self.steps)

    @property
    def part(self) -> str:
        """Path of the innermost part: `unet.down_blocks.2.attentions.0.transformer_blocks.3`."""
        return _path(self.component, self.steps)

    @property
    def deep(self) -> Step | None:
        """The innermost step, where its stack is one that models have more or fewer parts of."""
        return self.steps[-1] if self.steps[-1].stack.deep else None

    @property
    def home(self) -> str:
        """Path of what holds the innermost deep stack; of the innermost part without one."""
        return _path(self.component, self.steps[:-1] if self.deep else self.steps)

    @property
    def order(self) -> tuple[tuple[int, int], ...]:
        """Sorts parts as the network runs through them."""
        found, stacks = [], STACKS[self.component]
        for step in self.steps:
            found.append((stacks.index(step.stack), step.number))
            stacks = step.stack.inside
        return tuple(found)


@dataclass(frozen=True)
class Part:
    """A component, or one part of a stack: its own modules, and the stacks that it holds.

    Attributes:
        path: `unet.down_blocks.2.attentions.0`.
        own: its modules by role, but for those in stacks.
        stacks: the stacks inside, as they are declared, with their parts by ascending number.
    """

    path: str
    own: Roles = field(default_factory=dict)
    stacks: dict[Stack, dict[int, "Part"]] = field(default_factory=dict)

    def paths(self) -> Iterable[str]:
        """Every module in it."""
        yield from self.own.values()
        for parts in self.stacks.values():
            for part in parts.values():
                yield from part.paths()


@lru_cache(maxsize=2**17)  # all modules of all published models, asked for by every adapter
def place_of(path: str) -> Place | None:
    """The place of a module; None for modules outside of stacks (`unet.conv_in`)."""
    component, _, rest = path.partition(".")
    steps, stacks = [], STACKS.get(component, ())
    while (found := _step(stacks, rest)) is not None:
        step, rest = found
        steps.append(step)
        stacks = step.stack.inside
    return Place(component, tuple(steps), rest) if steps else None


def has_stacks(path: str) -> bool:
    """Whether a module belongs to a component with stacks; a text encoder's does not."""
    return path.partition(".")[0] in STACKS


def tree(paths: Iterable[str]) -> Mapping[str, Part]:
    """The components that have stacks, by name, and everything in their stacks.

    Args:
        paths: of all modules of a base model.
    """
    found: dict[str, Part] = {}
    for path in paths:
        place = place_of(path)
        if place is None:
            continue
        part = found.setdefault(place.component, Part(place.component))
        for step in place.steps:
            parts = part.stacks.setdefault(step.stack, {})
            part = parts.setdefault(step.number, Part(step.under(part.path)))
        part.own[place.role] = path
    return {name: _sorted(part, STACKS[name]) for name, part in found.items()}


def _step(stacks: tuple[Stack, ...], rest: str) -> tuple[Step, str] | None:
    """The first step of a path below a part with these stacks, and what is left of the path."""
    for stack in stacks:
        head, inside = f"{stack.name}.", rest.removeprefix(f"{stack.name}.")
        if not rest.startswith(head):
            continue
        if stack.single:
            return Step(stack, 0), inside
        number, _, inside = inside.partition(".")
        if number.isdecimal() and inside:
            return Step(stack, int(number)), inside
    return None


def _path(component: str, steps: Iterable[Step]) -> str:
    path = component
    for step in steps:
        path = step.under(path)
    return path


def _sorted(part: Part, stacks: tuple[Stack, ...]) -> Part:
    inside = {
        stack: {n: _sorted(p, stack.inside) for n, p in sorted(part.stacks[stack].items())}
        for stack in stacks
        if stack in part.stacks
    }
    return Part(part.path, part.own, inside)
