"""torchao and optimum-quanto: tensor subclasses of torch, saved as the tensors that they hold.

torchao's own functions for safetensors write `_weight_qdata`, `_weight_scale` and, of int8,
`_weight_zero_point` beside a header string that names the class; its `dequantize` is
`(number - zero point) · scale`. optimum-quanto writes `weight._data` and `weight._scale`; the dtype
of its floats is that of the scale.
"""

import json
import math
from typing import Any

from prolora_jax.errors import Refusal
from prolora_jax.io.containers.packed.packed_weight import (
    FLOATS,
    PackedModule,
    PackedWeight,
    Packing,
)
from prolora_jax.io.containers.packed.scaled import FLOAT8, scaled

_QDATA, _SCALE, _ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
_TORCHAO = {"Int8Tensor": ("int8",), "Float8Tensor": FLOAT8}
_OTHER_SCALES = ("_weight_act_pre_scale",)


def _open_torchao(module: PackedModule) -> PackedWeight:
    said = _description(module)
    name, held = said.get("_type"), said.get("_data")
    numbers, scale, zero = (module.parts.get(end) for end in (_QDATA, _SCALE, _ZERO))
    assert numbers is not None
    if not isinstance(held, dict) or numbers.dtype.name not in _TORCHAO.get(str(name), ()):
        raise module.refusal(
            f"torchao's {name} of {numbers.dtype.name}",
            f"one of {', '.join(_TORCHAO)}",
            "give the model in one of these, or one whose weights are not packed",
            Refusal.UNSUPPORTED_DTYPE,
        )
    if module.one_of(_OTHER_SCALES) is not None:
        raise module.refusal(
            "a scale for what comes in (act_pre_scale), which the weight was divided by",
            "a weight that is the base model's",
            "give a model without smoothing, or one whose weights are not packed",
            Refusal.UNSUPPORTED_DTYPE,
        )
    shape = numbers.shape
    match held:
        case {
            "block_size": [int(down), int(across)],
            "dtype": {"_data": str(dtype)},
        } if dtype in FLOATS and down > 0 and across > 0 and len(shape) == 2:
            pass
        case _:
            raise module.refusal(
                f"torchao's {name} of shape {shape} with {json.dumps(held)[:200]}",
                "a matrix with a block_size of two numbers and a dtype of floats",
                "give the model in another form",
                Refusal.UNSUPPORTED_DTYPE,
            )
    assert scale is not None
    grid = -(-shape[0] // down), -(-shape[1] // across)
    module.need(
        scale.dtype in FLOATS.values() and scale.size == math.prod(grid),
        f"a scale of shape {scale.shape}, {scale.dtype.name}",
        f"{grid} floats for a weight of shape {shape}",
    )
    parts = {"weight": numbers, "scale": scale}
    if zero is not None:
        module.need(
            zero.size == scale.size, f"a zero point of shape {zero.shape}", f"one of {scale.shape}"
        )
        parts["zero_point"] = zero
    kind = "int8" if name == "Int8Tensor" else "float8"
    return scaled(f"torchao {kind}", parts, (down, across), FLOATS[dtype], is_linear=True)


def _description(module: PackedModule) -> dict[str, Any]:
    """What the header says of the tensor's class."""
    key = f"{module.parts[_QDATA].key.removesuffix(_QDATA)}weight"
    try:
        said = json.loads(module.metadata.get(key, ""))
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise module.refusal(
            f"{_QDATA} and no {key} among the header's strings",
            "torchao's description of the tensor",
            "save the model again with torchao's functions for safetensors",
        )
    return said


def _open_quanto(module: PackedModule) -> PackedWeight:
    numbers, scale = module.parts["weight._data"], module.parts["weight._scale"]
    rows, columns = numbers.shape[0], math.prod(numbers.shape[1:])
    by_rows = scale.shape == (rows, *(1 for _ in numbers.shape[1:]))
    module.need(
        scale.dtype in FLOATS.values() and (by_rows or scale.size == 1),
        f"scales of shape {scale.shape}, {scale.dtype.name}",
        f"floats, one for each row of a weight of shape {numbers.shape}",
    )
    block = (1 if by_rows else rows, columns)
    kind = "qint8" if numbers.dtype.name == "int8" else "qfloat8"
    parts = {"weight": numbers, "scale": scale}
    return scaled(f"optimum-quanto {kind}", parts, block, scale.dtype, is_linear=True)


TENSOR_SUBCLASSES = (
    Packing(
        name="torchao's int8 or float8",
        marks=(_QDATA,),
        numbers=_QDATA,
        dtypes=("int8", *FLOAT8, "uint8", "int32"),  # what is not read is named by its class
        needs=((_SCALE,),),
        open=_open_torchao,
        may=(_ZERO, *_OTHER_SCALES),
    ),
    Packing(
        name="optimum-quanto's qint8 or qfloat8",
        marks=("weight._data",),
        numbers="weight._data",
        dtypes=("int8", *FLOAT8),
        needs=(("weight._scale",),),
        open=_open_quanto,
    ),
)
