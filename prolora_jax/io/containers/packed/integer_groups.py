"""GPTQ and AWQ: whole numbers of few bits in groups of input columns, packed into int32.

Both store the weight `(in, out)` and unpack it to `(number - zero) · scale` of its group, in the
scales' dtype.

GPTQ packs along the inputs, the lowest bits first; `g_idx` says which group an input is in. Files
of format `gptq` store each zero less 1, those of `gptq_v2` as it is, and only the config says
which.

AWQ packs along the outputs, in the order 0 2 4 6 1 3 5 7. It has moved scales of columns into the
layer before (a norm, most often), so that its weights are the base model's up to a diagonal.
"""

from typing import Any

import numpy as np

from prolora_jax.errors import Refusal
from prolora_jax.io.containers.packed.packed_weight import (
    FLOATS,
    PackedModule,
    PackedWeight,
    Packing,
)

_WORD = 32
_GPTQ_BITS = (2, 4, 8)
_ZEROS_LESS = {"gptq": 1, "gptq_v2": 0}
_AWQ_BITS = 4
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_ANOTHER = "give the model in another packing, or one whose weights are not packed"
AWQ_NOTE = (
    "AWQ has moved scales of columns into the layers before: weights are the base model's up to a "
    "diagonal, and similarities with models that are not packed so are lower than they should be"
)


def _open(module: PackedModule) -> PackedWeight:
    method = module.settings.get("quant_method")
    words, scales = module.parts["qweight"], module.parts["scales"]
    module.need(
        len(words.shape) == 2 and len(scales.shape) == 2 and scales.dtype in FLOATS.values(),
        f"qweight of shape {words.shape} and scales of shape {scales.shape}, {scales.dtype.name}",
        "two matrices, scales of floats",
    )
    along_outputs = words.shape[1] * (_WORD // _AWQ_BITS) == scales.shape[1]
    if method in {"awq", "gptq", None} and "qzeros" in module.parts:
        return _open_awq(module) if along_outputs and method != "gptq" else _open_gptq(module)
    without = "" if "qzeros" in module.parts else " without qzeros"
    raise module.refusal(
        f"qweight{without}, of quant_method {method!r}",
        "gptq or awq, with zeros",
        _ANOTHER,
        Refusal.UNSUPPORTED_DTYPE,
    )


def _open_gptq(module: PackedModule) -> PackedWeight:
    words, zeros, scales = (module.parts[end] for end in ("qweight", "qzeros", "scales"))
    of_groups = module.parts.get("g_idx")
    bits, less = _gptq_settings(module.settings, module)
    count = _WORD // bits
    inputs, outputs, groups = words.shape[0] * count, words.shape[1], scales.shape[0]
    wanted = (groups, outputs), (groups, outputs // count), (inputs,)
    found = scales.shape, zeros.shape, (inputs,) if of_groups is None else of_groups.shape
    module.need(
        found == wanted,
        f"scales, qzeros and g_idx of shapes {found}",
        f"{wanted} for {inputs} inputs and {outputs} outputs of {bits} bits",
    )
    if of_groups is None and (module.settings.get("desc_act") is not False or inputs % groups):
        raise module.refusal(
            "no g_idx and no desc_act = false in the config",
            "one of them: which inputs are in which group",
            "add what the model was quantised with to quantization_config in config.json",
        )

    def unpack(first: int, end: int) -> np.ndarray:
        in_turn = np.arange(inputs) // max(1, inputs // groups)
        group = in_turn if of_groups is None else of_groups.read()
        if group.min() < 0 or group.max() >= groups:
            raise module.refusal(f"group {group.max()} in g_idx", f"{groups} groups", _ANOTHER)
        offsets = _along_outputs(zeros.read(), bits)
        if less and (offsets == 2**bits - 1).any():
            raise module.refusal(
                f"a zero of {2**bits - 1}, which stored less 1 is 0 or {2**bits}",
                "zeros that are stored as they are (gptq_v2), or other ones",
                _ANOTHER,
                Refusal.UNSUPPORTED_DTYPE,
            )
        held = scales.read()
        found = np.empty((inputs, outputs), held.dtype)
        rows = words.read().view(np.uint32)
        for place in range(count):
            at = group[place::count]
            number = ((rows >> np.uint32(bits * place)) & np.uint32(2**bits - 1)).astype(np.float32)
            number -= offsets[at] + np.float32(less)
            found[place::count] = (number * held[at].astype(np.float32)).astype(held.dtype)
        return np.ascontiguousarray(found.T).reshape(-1)[first:end]

    parts = {"qweight": words, "qzeros": zeros, "scales": scales}
    parts |= {} if of_groups is None else {"g_idx": of_groups}
    packing = f"GPTQ {bits} bits, zeros less {less}"
    return PackedWeight(packing, parts, (outputs, inputs), scales.dtype, unpack, is_linear=True)


def _gptq_settings(settings: Any, module: PackedModule) -> tuple[int, int]:
    """Bits of a number, and by how much zeros are less than they should be."""
    bits, said = settings.get("bits"), settings.get("checkpoint_format")
    of_groups, words = module.parts.get("g_idx"), module.parts["qweight"]
    if bits is None and of_groups is not None and of_groups.size:
        bits = _WORD * words.shape[0] / of_groups.size
    if bits not in _GPTQ_BITS:
        raise module.refusal(
            f"GPTQ of {'unknown' if bits is None else bits} bits",
            f"bits of {', '.join(map(str, _GPTQ_BITS))} in quantization_config of config.json",
            _ANOTHER,
            Refusal.UNSUPPORTED_DTYPE,
        )
    if said not in _ZEROS_LESS:
        raise module.refusal(
            f"GPTQ with checkpoint_format {said!r} in the config",
            "gptq (each zero is stored less 1, as AutoGPTQ does) or gptq_v2 (as it is)",
            "add the right one to quantization_config in config.json beside the weights",
            Refusal.UNSUPPORTED_CONFIG,
        )
    return int(bits), _ZEROS_LESS[said]


def _along_outputs(words: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of words that are packed along the outputs, in float32."""
    shifts = np.arange(0, _WORD, bits, dtype=np.uint32)
    numbers = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return numbers.reshape(*words.shape[:-1], -1).astype(np.float32)


def _open_awq(module: PackedModule) -> PackedWeight:
    words, zeros, scales = (module.parts[end] for end in ("qweight", "qzeros", "scales"))
    layout, bits = module.settings.get("version", "gemm"), module.settings.get("bits", _AWQ_BITS)
    if str(layout).lower() != "gemm" or bits != _AWQ_BITS:
        raise module.refusal(
            f"AWQ of version {layout} and {bits} bits",
            f"gemm and {_AWQ_BITS}",
            _ANOTHER,
            Refusal.UNSUPPORTED_DTYPE,
        )
    inputs, (groups, outputs) = words.shape[0], scales.shape
    module.need(
        zeros.shape == (groups, words.shape[1]) and groups > 0 and inputs % groups == 0,
        f"qzeros of shape {zeros.shape} and scales of shape {scales.shape}",
        f"zeros of shape {(groups, words.shape[1])} for {inputs} inputs in groups",
    )
    size = inputs // groups

    def unpack(first: int, end: int) -> np.ndarray:
        found = np.empty((inputs, outputs), scales.dtype)
        offsets, held = _in_order(zeros.read()), scales.read().astype(np.float32)
        for group in range(groups):
            rows = slice(group * size, (group + 1) * size)
            some = words.numbers(rows.start * words.shape[1], rows.stop * words.shape[1])
            number = _in_order(some.reshape(size, -1)) - offsets[group]
            found[rows] = (number * held[group]).astype(found.dtype)
        return np.ascontiguousarray(found.T).reshape(-1)[first:end]

    return PackedWeight(
        *("AWQ 4 bits", {"qweight": words, "qzeros": zeros, "scales": scales}),
        *((outputs, inputs), scales.dtype, unpack),
        is_linear=True,
        note=AWQ_NOTE,
    )


def _in_order(words: np.ndarray) -> np.ndarray:
    """Numbers of AWQ's words, in the order of the outputs."""
    stored = _along_outputs(words, _AWQ_BITS).reshape(*words.shape, len(_AWQ_ORDER))
    return stored[..., np.argsort(_AWQ_ORDER)].reshape(len(words), -1)


INTEGER_GROUPS = Packing(
    name="GPTQ or AWQ",
    marks=("qweight",),
    numbers="qweight",
    dtypes=("int32",),
    needs=(("scales",),),
    open=_open,
    may=("qzeros", "g_idx"),
)
