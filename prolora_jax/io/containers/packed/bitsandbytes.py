"""bitsandbytes: nf4 and fp4 in blocks, their scales packed once more or not; int8 by rows.

4 bits (library: `functional.dequantize_4bit`): two numbers a byte, the first in the high half; a
number is `quant_map[index] · absmax` of its block, rounded to the dtype that the weight had. Packed
twice, `absmax = nested_quant_map[index] · nested_absmax` of a block of those, plus an offset.
Blocks go on over the ends of rows. (Version 0.50.2 forgets that on CPUs, where a row is no multiple
of a block: its error against the weight that was packed doubles there, and here it does not.)

8 bits (library: `functional.int8_vectorwise_dequant`): `number · SCB / 127`, by row, in float32.
"""

import json
import math
from typing import Any

import numpy as np

from prolora_jax.errors import Refusal
from prolora_jax.io.containers.packed.packed_weight import (
    FLOATS,
    REMEDY,
    PackedModule,
    PackedWeight,
    Packing,
    StoredTensor,
)

_KINDS = ("nf4", "fp4")
_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in _KINDS)
_ABSMAX, _MAP = "weight.absmax", "weight.quant_map"
_NESTED_ABSMAX, _NESTED_MAP = "weight.nested_absmax", "weight.nested_quant_map"
# Bytes may be stored as floats of any dtype, so that sharded training takes them along.
_STORAGE = ("uint8", "float32", "float16", "bfloat16")
_STATE_IS = "the state of a weight of 4 bits: quant_type, shape, dtype, blocksize"
_INT8_STEP = np.float32(7.874015718698502e-3)
_BY_ROW = 0


def _open_4bit(module: PackedModule) -> PackedWeight:
    state = _state(module)
    kind, dtype, blocksize = state["quant_type"], FLOATS[state["dtype"]], state["blocksize"]
    shape = tuple(state["shape"])
    size = math.prod(shape)
    numbers, absmax, codes = (module.parts[end] for end in ("weight", _ABSMAX, _MAP))
    blocks, held = -(-size // blocksize), numbers.size * numbers.dtype.itemsize
    module.need(
        held == -(-size // 2) and absmax.size == blocks and codes.size == 16,
        f"{held} bytes, {absmax.size} absmax and {codes.size} codes",
        f"{-(-size // 2)} bytes, {blocks} absmax and 16 codes for a weight of shape {shape}",
    )
    is_nested = _NESTED_ABSMAX in module.parts
    parts = {end: module.parts[end] for end in ("weight", _ABSMAX, _MAP)}
    if is_nested:
        _require_nested(module, state, blocks)
        parts |= {end: module.parts[end] for end in (_NESTED_ABSMAX, _NESTED_MAP)}
    parts["state"] = next(module.parts[end] for end in _STATES if end in module.parts)

    def unpack(first: int, end: int) -> np.ndarray:
        found = _looked_up(numbers, codes.read().astype(np.float32), first, end)
        scales = _absmax(parts, state, first // blocksize, -(-end // blocksize))
        whole = len(found) // blocksize * blocksize
        found[:whole].reshape(-1, blocksize)[...] *= scales[: whole // blocksize, None]
        found[whole:] *= scales[-1]
        return found.astype(dtype)

    name = f"{kind}, packed twice" if is_nested else kind
    return PackedWeight(name, parts, shape, dtype, unpack, blocksize, is_linear=True)


def _looked_up(numbers: StoredTensor, codes: np.ndarray, first: int, end: int) -> np.ndarray:
    """Codes of numbers, of which two are in a byte; the first one's place is even."""
    width = numbers.dtype.itemsize
    start, stop = first // 2 // width, -(-end // (2 * width))
    held = numbers.numbers(start, stop).view(np.uint8)[first // 2 - start * width :]
    both = np.arange(256)
    table = np.stack([codes[both >> 4], codes[both & 15]], axis=1)
    return np.take(table, held, axis=0).reshape(-1)[: end - first]


def _absmax(
    parts: dict[str, StoredTensor], state: dict[str, Any], first: int, end: int
) -> np.ndarray:
    """Scales of blocks, in float32."""
    held = parts[_ABSMAX].numbers(first, end)
    if _NESTED_ABSMAX not in parts:
        return held.astype(np.float32)
    of = np.arange(first, end) // state["nested_blocksize"]
    outer = parts[_NESTED_ABSMAX].numbers(int(of[0]), int(of[-1]) + 1).astype(np.float32)
    found = parts[_NESTED_MAP].read().astype(np.float32)[held] * outer[of - of[0]]
    return found + np.float32(state["nested_offset"])


def _state(module: PackedModule) -> dict[str, Any]:
    """What the JSON in a module's state says, checked."""
    said = module.said(next(end for end in _STATES if end in module.parts))
    match said:
        case {
            "quant_type": str(kind),
            "shape": [*shape],
            "dtype": str(dtype),
            "blocksize": int(blocksize),
        }:
            sizes = all(type(n) is int and n > 0 for n in shape) and len(shape) > 1
            if kind in _KINDS and dtype in FLOATS and sizes and blocksize > 0 == blocksize % 2:
                return said
    shown = " ".join(json.dumps(said).split())[:200]
    raise module.refusal(f"a state {shown}", _STATE_IS, REMEDY, Refusal.UNSUPPORTED_DTYPE)


def _require_nested(module: PackedModule, state: dict[str, Any], blocks: int) -> None:
    outer, codes = module.parts[_NESTED_ABSMAX], module.parts.get(_NESTED_MAP)
    blocksize, offset = state.get("nested_blocksize"), state.get("nested_offset")
    right = isinstance(blocksize, int) and blocksize > 0 and isinstance(offset, float | int)
    module.need(
        right and codes is not None and codes.size == 256,
        f"{_NESTED_ABSMAX} and a state without what belongs to it",
        f"{_NESTED_MAP} of 256 numbers, nested_blocksize and nested_offset",
    )
    assert isinstance(blocksize, int)
    wanted = -(-blocks // blocksize)
    inner = module.parts[_ABSMAX]
    module.need(
        outer.size == wanted and inner.dtype == np.uint8,
        f"{outer.size} nested_absmax over {inner.dtype.name} absmax",
        f"{wanted} over uint8 for {blocks} blocks",
    )


def _open_int8(module: PackedModule) -> PackedWeight:
    numbers, scales = module.parts["weight"], module.parts["SCB"]
    shape = numbers.shape
    module.need(
        len(shape) == 2 and scales.size == shape[0] and scales.dtype in FLOATS.values(),
        f"SCB of shape {scales.shape}, {scales.dtype.name}",
        f"{shape[0]} floats for a weight of shape {shape}",
    )
    layout = module.parts.get("weight_format")
    if layout is not None and layout.size == 1 and int(layout.read().reshape(-1)[0]) != _BY_ROW:
        raise module.refusal(
            f"weight_format {layout.read().reshape(-1)[0]}, an order for some device",
            f"{_BY_ROW}, row by row",
            "save the model again with a newer bitsandbytes",
            Refusal.UNSUPPORTED_DTYPE,
        )
    columns = shape[1]

    def unpack(first: int, end: int) -> np.ndarray:
        # In the library's order: by the row's scale, then by 1 / 127.
        found = numbers.numbers(first, end).astype(np.float32).reshape(-1, columns)
        of_rows = scales.numbers(first // columns, end // columns).astype(np.float32)
        return (found * of_rows[:, None] * _INT8_STEP).reshape(-1)

    parts = {"weight": numbers, "SCB": scales}
    dtype = FLOATS["float32"]
    return PackedWeight("int8 by rows", parts, shape, dtype, unpack, columns, is_linear=True)


BITSANDBYTES = (
    Packing(
        name="bitsandbytes' nf4 or fp4",
        marks=(*_STATES, _ABSMAX),
        numbers="weight",
        dtypes=_STORAGE,
        needs=(_STATES, (_ABSMAX,), (_MAP,)),
        open=_open_4bit,
        may=(_NESTED_ABSMAX, _NESTED_MAP),
    ),
    Packing(
        name="bitsandbytes' int8",
        marks=("SCB",),
        numbers="weight",
        dtypes=("int8",),
        needs=(("SCB",),),
        open=_open_int8,
        may=("weight_format",),
    ),
)
