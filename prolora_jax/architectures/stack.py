"""A stack as a family declares it: parts with numbers that could stand for each other."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stack:
    """Parts of one kind, counted from 0.

    Attributes:
        name: what stands before the number in a path: `transformer_blocks`, `model.layers`.
        level: what its parts are called in messages: `stages`, `slots`, `blocks`, `layers`.
        inside: the stacks that one of its parts holds.
        deep: whether models of a family differ in how many parts there are, so that the number
            says nothing of whether what holds the stack fits.
        single: whether there is one part, whose path has no number (`mid_block`).
        kind: what it has in common with other stacks whose modules could stand for its own;
            its name where nothing is said.
        apart: starts of roles that only some of its parts have; parts can stand for each other
            where they have the same of these, whatever else they have in common.
    """

    name: str
    level: Literal["stages", "slots", "blocks", "layers"]
    inside: tuple["Stack", ...] = ()
    deep: bool = False
    single: bool = False
    kind: str = ""
    apart: tuple[str, ...] = ()
