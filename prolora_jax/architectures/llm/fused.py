"""Layers that one model has as one and another as several: row segments, and experts.

Phi has `qkv_proj`, whose rows are those of q, then k, then v, and `gate_up_proj`, gate before up.
Experts are a layer each on disk; transformers 5 has one parameter for all of them, and trainers of
adapters have either.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from prolora_jax.architectures.llm.names import LM

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Parts of a fused layer, in the order of their rows."""

FUSED_BY_PART = {part: fused for fused, parts in FUSED.items() for part in parts}

# What an expert's layers are called where they are not called as those of a dense model.
_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_OLD_BLOCK, _BLOCK = ".block_sparse_moe.", ".mlp."
_EXPERT = re.compile(rf"({re.escape(LM)}.+)\.experts\.(\d+)\.(\w+)")

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": FUSED["gate_up_proj"],
    "down_proj": ("down_proj",),
}
"""Parameters that hold a layer of all experts, and the layers of an expert that they hold."""


class Expert(NamedTuple):
    """A layer of an expert: what holds the experts, its number, and its name as dense models'."""

    block: str
    number: int
    part: str


def expert_of(path: str) -> Expert | None:
    """The expert that a layer on disk belongs to; None where it belongs to none.

    Args:
        path: `lm.model.layers.0.block_sparse_moe.experts.3.w1`.

    Returns:
        Block `lm.model.layers.0.block_sparse_moe`, number 3, part `gate_proj`.
    """
    found = _EXPERT.fullmatch(path)
    if found is None:
        return None
    names = {own: part for part, own in _MIXTRAL.items()}
    return Expert(found[1], int(found[2]), names.get(found[3], found[3]))


def expert_path(block: str, number: int, part: str) -> str:
    """Path on disk of an expert's layer; see `expert_of`."""
    name = _MIXTRAL[part] if f"{block}.".endswith(_OLD_BLOCK) else part
    return f"{block}.experts.{number}.{name}"


def in_memory(path: str) -> str:
    """What transformers 5 calls a block of experts, or a layer in it, that disks call otherwise."""
    return f"{path}.".replace(_OLD_BLOCK, _BLOCK).removesuffix(".")


def on_disk(path: str) -> str:
    """The other name of a block of experts, or of a layer in it."""
    renamed = f"{path}.".replace(_BLOCK, _OLD_BLOCK).removesuffix(".")
    found = expert_of(renamed)
    if found is None or found.part not in _MIXTRAL:
        return renamed
    return expert_path(*found)
