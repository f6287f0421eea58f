"""A UNet as stages, slots and transformer blocks, read off its module paths.

`unet.down_blocks.2.attentions.0.transformer_blocks.3.attn1.to_q` is the role `attn1.to_q` of
block 3 of the slot `attentions.0` of the stage `down_blocks.2`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.spec import BaseModelSpec

BLOCK = ".transformer_blocks."
DIRECTIONS = ("down_blocks", "mid_block", "up_blocks")

Roles = dict[str, str]
"""Module path by role: what the module is called inside its block or slot."""


@dataclass(frozen=True)
class Slot:
    """One resnet, attention or sampler: its own modules and its transformer blocks."""

    path: str
    own: Roles = field(default_factory=dict)
    blocks: dict[int, Roles] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One down, middle or up block: slots by kind (`resnets`) and index."""

    path: str
    kinds: dict[str, dict[int, Slot]] = field(default_factory=dict)


Tree = Mapping[str, Mapping[int, Stage]]
"""Stages by direction and index; the middle block is stage 0 of `mid_block`."""


@dataclass(frozen=True)
class Place:
    """Where a module of a UNet stands; `kind` and `role` name it wherever the slot stands."""

    direction: str
    stage: int
    kind: str
    slot: int
    block: int | None
    role: str

    @property
    def stage_path(self) -> str:
        """`unet.down_blocks.2`."""
        number = "" if self.direction == "mid_block" else f".{self.stage}"
        return f"{UNET}{self.direction}{number}"

    @property
    def slot_path(self) -> str:
        """`unet.down_blocks.2.attentions.0`."""
        return f"{self.stage_path}.{self.kind}.{self.slot}"


def split_block(path: str) -> tuple[str, int, str] | None:
    """(slot, block index, role) of a path inside a transformer block, else None."""
    slot, found, rest = path.partition(BLOCK)
    index, _, role = rest.partition(".")
    return (slot, int(index), role) if found and index.isdigit() else None


@lru_cache(maxsize=2**15)  # all modules of all published models, asked for by every adapter
def place_of(path: str) -> Place | None:
    """The place of a module in a UNet; None for modules outside of slots (`conv_in`)."""
    head = path.removeprefix(UNET)
    parts = head.split(".")
    if head == path or parts[0] not in DIRECTIONS:
        return None
    number = "0" if parts[0] == "mid_block" else parts.pop(1)
    if len(parts) < 4 or not (number.isdigit() and parts[2].isdigit()):
        return None
    split = split_block(path)
    block, role = (None, ".".join(parts[3:])) if split is None else split[1:]
    return Place(parts[0], int(number), parts[1], int(parts[2]), block, role)


def tree(spec: BaseModelSpec) -> Tree:
    """All stages of a base model, indexes ascending."""
    stages: dict[str, dict[int, Stage]] = {}
    for path in spec.modules:
        place = place_of(path)
        if place is None:
            continue
        stage = stages.setdefault(place.direction, {}).setdefault(
            place.stage, Stage(place.stage_path)
        )
        slot = stage.kinds.setdefault(place.kind, {}).setdefault(place.slot, Slot(place.slot_path))
        own = slot.own if place.block is None else slot.blocks.setdefault(place.block, {})
        own[place.role] = path
    for numbered in stages.values():
        for stage in numbered.values():
            for kind, slots in stage.kinds.items():
                stage.kinds[kind] = {
                    i: Slot(slot.path, slot.own, dict(sorted(slot.blocks.items())))
                    for i, slot in sorted(slots.items())
                }
    return {direction: dict(sorted(found.items())) for direction, found in stages.items()}
