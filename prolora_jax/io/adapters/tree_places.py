"""Where trees of tunix and MaxText have factors: layers of transformers', and how the axes lie.

Sources: tunix 0.1.7 and MaxText 0.2.5 (`utils/lora_utils.py`, `checkpoint_conversion`), both run by
hand with qwix 0.1.8, which makes the factors: `lora.py`, a batch axis of none, what is contracted
and what remains each as one axis of a product, and of an einsum each axis of the weight's own.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from prolora_jax.architectures.llm.tree_names import MAXTEXT

Shape = tuple[int, ...]

_TUNIX = re.compile(
    r"layers\.(?P<block>\d+)\.(?:(attn)\.([qkvo]_proj)\.w|(mlp)\.((?:gate|up|down)_proj)\.kernel)"
    r"_lora_(?P<side>[ab])"
)
_BLOCKS = {"attn": "self_attn", "mlp": "mlp"}
_MAXTEXT = re.compile(
    r"(?:params\.){0,2}(?:base\.)?decoder\.layers(?:[._](?P<block>\d+))?\."
    r"(?P<layer>(?:self_attention|mlp)\.\w+)\.kernel_lora_(?P<side>[ab])"
)
_ROLES = {name: role for role, name in MAXTEXT.items()}


class Factor(NamedTuple):
    """A place in a tree.

    Attributes:
        role: of its layer in its block, by transformers' name.
        side: `a` or `b`.
        block: number of its block; None of an array that has all of them.
    """

    role: str
    side: str
    block: int | None

    def layer(self, block: int | None = None) -> str:
        """Transformers' name of the layer, of one block or of all."""
        number = self.block if block is None else block
        return f"model.layers.{'*' if number is None else number}.{self.role}"


class TreeKind(NamedTuple):
    """A trainer.

    Attributes:
        known: which layers are known here, in words.
        factor: what is at a place, its levels with dots between; None of what is not known.
        misfit: what is wrong with the shapes of a tree's factors, and what was expected.
        matrices: of a factor its layers', as `(layer, factor)`, `(rank, in)` or `(out, rank)`; the
            other factor's shape is told, too.
    """

    known: str
    factor: Callable[[str], Factor | None]
    misfit: Callable[[Mapping[Factor, Shape]], tuple[str, str] | None]
    matrices: Callable[[Factor, np.ndarray, Shape], Iterator[tuple[str, np.ndarray]]]


def rank_of(factor: Factor, shape: Shape) -> int:
    """The rank that a pair has, by the shape of its `a`.

    Args:
        factor: of side `a`.
        shape: its own.
    """
    assert factor.side == "a"
    return shape[-1]


def _tunix_factor(name: str) -> Factor | None:
    found = _TUNIX.fullmatch(name)
    if found is None:
        return None
    number, attention, projection, mlp, linear, side = found.groups()
    return Factor(f"{_BLOCKS[attention or mlp]}.{projection or linear}", side, int(number))


def _tunix_misfit(shapes: Mapping[Factor, Shape]) -> tuple[str, str] | None:
    for factor, shape in shapes.items():
        axes = 2 + _has_heads(factor)
        if len(shape) != axes:
            name = f"{factor.layer()}: found a factor {factor.side} in shape {shape}"
            return name, f"{axes} axes, as in {TUNIX_TREE.known}"
    return None


def _has_heads(factor: Factor) -> bool:
    """Whether a factor has an axis for heads beside that for their numbers."""
    ends = "o_proj" if factor.side == "a" else ("q_proj", "k_proj", "v_proj")
    return factor.role.endswith(ends)


def _tunix_matrices(
    factor: Factor, array: np.ndarray, other: Shape
) -> Iterator[tuple[str, np.ndarray]]:
    del other  # heads are told by their own axis
    if factor.side == "a":
        yield factor.layer(), array.reshape(-1, array.shape[-1]).T
    else:
        yield factor.layer(), array.reshape(len(array), -1).T


def _maxtext_factor(name: str) -> Factor | None:
    found = _MAXTEXT.fullmatch(name)
    role = None if found is None else _ROLES.get(found["layer"])
    if found is None or role is None:
        return None
    return Factor(role, found["side"], None if found["block"] is None else int(found["block"]))


def _maxtext_misfit(shapes: Mapping[Factor, Shape]) -> tuple[str, str] | None:
    for factor, shape in shapes.items():
        other = shapes.get(factor._replace(side="b" if factor.side == "a" else "a"))
        a, b = (shape, other) if factor.side == "a" else (other, shape)
        if a is None or b is None:
            return f"{factor.layer()}: found a factor {factor.side} alone", "a and b"
        if factor.block is None:
            fit, wanted = len(_axes(a, b)) == 1, "(in, blocks, rank) and (rank, blocks, out)"
        else:
            fit, wanted = len(a) == len(b) == 2 and a[1] == b[0], "(in, rank) and (rank, out)"
        if not fit:
            return f"{factor.layer()}: found factors in shapes {a} and {b}", wanted
    return None


def _axes(a: Shape, b: Shape) -> list[int]:
    """Which axis of both factors counts the blocks: 1, unless `param_scan_axis` is another."""
    if len(a) != 3 or len(b) != 3:
        return []
    return [axis for axis in (0, 1) if a[axis] == b[axis] and a[2] == b[1 - axis]]


def _maxtext_matrices(
    factor: Factor, array: np.ndarray, other: Shape
) -> Iterator[tuple[str, np.ndarray]]:
    if factor.block is not None:
        yield factor.layer(), array.T
        return
    a, b = (array.shape, other) if factor.side == "a" else (other, array.shape)
    (axis,) = _axes(a, b)
    for block, own in enumerate(np.moveaxis(array, axis, 0)):
        yield factor.layer(block), own.T


TUNIX_TREE = TreeKind(
    "layers of tunix's Llama 3, Qwen 2 and Qwen 3", _tunix_factor, _tunix_misfit, _tunix_matrices
)
MAXTEXT_TREE = TreeKind(
    "query, key, value, out, wi_0, wi_1 and wo of MaxText's Llama 3.1, Qwen 2.5 and Qwen 3",
    _maxtext_factor,
    _maxtext_misfit,
    _maxtext_matrices,
)
