"""Layers that one model has as one and another as several: row segments, and experts.

Phi has `qkv_proj`, whose rows are those of q, then k, then v, and `gate_up_proj`, gate before up.
Experts are a layer each on most disks; transformers 5 has one parameter for all of them, and
trainers of adapters have either. Files of gpt-oss and Llama 4 have such parameters, `(in, out)`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
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


_EXPERTS = ".experts."
# The block of an expert whose parameters are `(in, out)`, by what stands beside its experts.
_ROUTER, _GATE = "router", "gate"
_LLAMA4 = ".feed_forward"


class HeldExpert(NamedTuple):
    """Where a tensor with a matrix for each expert has a layer of one of them.

    Attributes:
        number: of the expert.
        first: row of `(out, in)` that is the layer's first.
        end: the one behind its last.
        step: from one of its rows to the next.
        transposed: whether the tensor has each matrix as `(in, out)`.
    """

    number: int
    first: int
    end: int
    step: int
    transposed: bool


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


def is_llama4(block: str) -> bool:
    """Whether a block that holds experts is called as Llama 4's."""
    return block.endswith(_LLAMA4)


def is_turned(block: str, names: Collection[str]) -> bool:
    """Whether a model has the parameters of a block's experts as `(in, out)`.

    Args:
        block: that holds the experts, `model.layers.0.mlp`.
        names: of the model's layers.
    """
    return f"{block}.{_ROUTER}" in names


def row_orders(block: str, name: str, rows: Sequence[int], names: Collection[str]) -> list[range]:
    """Rows of a parameter that each of its layers has.

    They follow each other; of gpt-oss, whose block is called as that of most, they alternate.

    Args:
        block: that holds the experts.
        name: of the parameter, `gate_up_proj`.
        rows: how many each of its `PARAMETERS` has.
        names: of the model's layers.
    """
    count, whole = len(rows), sum(rows)
    if name == "gate_up_proj" and is_turned(block, names) and not is_llama4(block):
        return [range(i, whole, count) for i in range(count)]
    ends = [*accumulate(rows)]
    return [range(end - n, end) for n, end in zip(rows, ends, strict=True)]


def held_experts(
    name: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, HeldExpert]]:
    """The layers in a tensor that has a matrix for each expert.

    Args:
        name: of the tensor, `model.layers.0.mlp.experts.gate_up_proj`.
        shapes: of all tensors of the model, by name.

    Yields:
        Path of a layer without component, and where it is; nothing where the tensor is no such one,
        or where no shape beside it says which way round its matrices are.
    """
    block, found, parameter = name.rpartition(_EXPERTS)
    if not found or parameter not in PARAMETERS:
        return
    routers = [f"{block}.{router}" for router in (_ROUTER, _GATE)]
    names = [router for router in routers if f"{router}.weight" in shapes]
    count, *sides = shapes[name]
    turned = is_turned(block, names) or _is_turned_by_shape(block, shapes)
    if not names or turned is None:
        return
    out, parts = sides[1 if turned else 0], PARAMETERS[parameter]
    orders = row_orders(block, parameter, [out // len(parts)] * len(parts), names)
    for number in range(count):
        for part, rows in zip(parts, orders, strict=True):
            where = HeldExpert(number, rows.start, rows.stop, rows.step, turned)
            yield expert_path(block, number, part), where


def _is_turned_by_shape(block: str, shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Whether matrices are `(in, out)`, from both parameters and the router; None of neither.

    Files of Qwen 3 VL have them so, and transformers turns them round.
    """
    router = shapes.get(f"{block}.{_GATE}.weight", ())
    first, second = (shapes.get(f"{block}{_EXPERTS}{name}", ()) for name in PARAMETERS)
    if (len(router), len(first), len(second)) != (2, 3, 3):
        return None
    width, inner = router[1], {first[1] // 2, first[2] // 2} & {*second[1:]}
    if first[2] == second[1] == width and second[2] in inner:
        return False
    return True if first[1] == second[2] == width and second[1] in inner else None
