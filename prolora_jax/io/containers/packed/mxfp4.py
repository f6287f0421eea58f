"""Experts of gpt-oss: floats of 4 bits, and for 32 of them a power of two.

A tensor with a matrix for each expert is `NAME_blocks`, `(experts, out, groups, 16)` bytes, beside
`NAME_scales`, `(experts, out, groups)`; the float is e2m1 · 2^(scale - 127), of the lower half of a
byte first. A file of floats has `NAME`, `(experts, in, out)`: so it is presented here.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.packed.packed_weight import (
    FLOATS,
    REMEDY,
    PackedWeight,
    StoredTensor,
)

_BLOCKS, _SCALES = "_blocks", "_scales"
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = np.array((*_HALF, *(-number for number in _HALF)), np.float32)
_BYTES, _BIAS = 16, 127


def mxfp4_weights(
    stored: Mapping[str, StoredTensor], origin: str
) -> Iterator[tuple[str, PackedWeight]]:
    """The tensors of experts that are packed so; nothing is read.

    Args:
        stored: all tensors of a base model.
        origin: what to call it in messages.

    Yields:
        Key of the floats, and the packed weight; an expert is unpacked at a time.

    Raises:
        BaseModelError: blocks have no scales, or others than they need.
    """
    for key, blocks in stored.items():
        name = key.removesuffix(_BLOCKS)
        if name == key or ".experts." not in key:
            continue
        scales = stored.get(f"{name}{_SCALES}")
        shape = blocks.shape
        is_whole = (
            scales is not None
            and (len(shape), shape[-1], scales.shape) == (4, _BYTES, shape[:-1])
            and blocks.dtype == scales.dtype == np.uint8
        )
        if scales is None or not is_whole:
            beside = "nothing" if scales is None else f"{scales.dtype} {scales.shape}"
            raise BaseModelError(
                f"{origin}: {key}: found {blocks.dtype} {shape}, and {beside} as its scales; "
                f"expected bytes (experts, out, groups, {_BYTES}) and (experts, out, groups) of "
                f"MXFP4; {REMEDY}",
                code=Refusal.UNREADABLE_BASE,
            )
        yield name, _weight(blocks, scales)


def parts_of(name: str) -> tuple[str, str]:
    """Keys of the tensors that hold a weight.

    Args:
        name: key of its floats.
    """
    return f"{name}{_BLOCKS}", f"{name}{_SCALES}"


def _weight(blocks: StoredTensor, scales: StoredTensor) -> PackedWeight:
    experts, out, groups, _ = blocks.shape
    width = 2 * _BYTES * groups
    size = out * width

    def unpack(first: int, end: int) -> np.ndarray:
        count, start = (end - first) // size, first // size
        bytes_, powers = size // 2, out * groups
        packed = blocks.numbers(start * bytes_, (start + count) * bytes_)
        power = scales.numbers(start * powers, (start + count) * powers).astype(np.int32) - _BIAS
        found = np.empty((packed.size, 2), np.float32)
        found[:, 0], found[:, 1] = _E2M1[packed & 15], _E2M1[packed >> 4]
        found = np.ldexp(found.reshape(-1, 2 * _BYTES), power[:, None])
        turned = found.reshape(count, out, width).swapaxes(1, 2)
        return turned.reshape(-1).astype(FLOATS["bfloat16"])

    parts = {"blocks": blocks, "scales": scales}
    shape = (experts, width, out)
    return PackedWeight("mxfp4", parts, shape, FLOATS["bfloat16"], unpack, size)
