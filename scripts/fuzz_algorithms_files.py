"""Valid files of every algorithm beside plain LoRA, and ways to break them (fuzz_algorithms.py)."""

import json
from collections.abc import Callable, Mapping

import numpy as np
from fuzz_mutations import Rng, Tensors, pick

Shape = tuple[int, ...]
Metadata = dict[str, str]
Family = tuple[Tensors, Metadata]

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
LAYERS: Mapping[str, Shape] = {
    f"{BLOCK}.attn1.to_q": (32, 32),
    f"{BLOCK}.attn2.to_k": (32, 24),
    "down_blocks.1.resnets.0.conv1": (32, 16, 3, 3),
}
"""Layers of `fuzz.SPEC`: square, wide, a convolution."""


def _some(rng: Rng, *shape: int) -> np.ndarray:
    return (0.3 * rng.standard_normal(shape)).astype(np.float16)


def _parts(shapes: Mapping[str, Shape]) -> Callable[[Rng], Tensors]:
    return lambda rng: {end: _some(rng, *each) for end, each in shapes.items()}


def _loha(shape: Shape) -> Mapping[str, Shape]:
    (out, *rest), width = shape, int(np.prod(shape[1:]))
    if rest[1:]:
        core, side = (2, 2, *rest[1:]), {"a": (2, out), "b": (2, rest[0])}
    else:
        core, side = None, {"a": (out, 2), "b": (2, width)}
    shapes = {f"hada_w{n}_{name}": each for n in "12" for name, each in side.items()}
    return shapes | ({"hada_t1": core, "hada_t2": core} if core else {}) | {"alpha": ()}


def _lokr(shape: Shape) -> Mapping[str, Shape]:
    out, width, *window = shape
    if window:
        second = {"lokr_w2_a": (2, out // 4), "lokr_w2_b": (2, width // 4)}
        return {"lokr_w1": (4, 4), **second, "lokr_t2": (2, 2, *window), "alpha": ()}
    if out == width:
        return {"lokr_w1": (4, 4), "lokr_w2": (out // 4, width // 4)}
    factors = {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4)}
    return factors | {"lokr_w2_a": (out // 4, 2), "lokr_w2_b": (2, width // 4), "alpha": ()}


def _pair(shape: Shape) -> Mapping[str, Shape]:
    up = (shape[0], 2, *(1,) * (len(shape) - 2))
    return {"lora_down.weight": (2, *shape[1:]), "lora_up.weight": up, "alpha": ()}


def _tucker(shape: Shape) -> Mapping[str, Shape]:
    ones = (1, 1)
    if len(shape) == 2:
        return _pair(shape)
    core = {"lora_mid.weight": (2, 3, *shape[2:]), "alpha": ()}
    return {"lora_down.weight": (3, shape[1], *ones), "lora_up.weight": (shape[0], 2, *ones)} | core


def _dora(shape: Shape) -> Mapping[str, Shape]:
    ones, out = (1,) * (len(shape) - 2), shape[0]
    magnitude = (1, shape[1], *ones) if shape == (32, 24) else (out, 1, *ones)
    return {**_pair(shape), "dora_scale": magnitude}


def _dora_of_others(shape: Shape) -> Mapping[str, Shape]:
    inner = _lokr(shape) if shape == (32, 24) else _loha(shape)
    return {**inner, "dora_scale": (shape[0], 1, *(1,) * (len(shape) - 2))}


def _ia3(shape: Shape) -> Mapping[str, Shape]:
    ones = (1,) * (len(shape) - 2)
    return {"weight": (shape[0], 1, *ones), "on_input": (1,)}


def _oft(shape: Shape) -> Mapping[str, Shape]:
    return {"oft_blocks": (8, 4, 4), "rescale": (shape[0], 1), "alpha": ()}


def _boft(shape: Shape) -> Mapping[str, Shape]:
    return {"oft_blocks": (3, 8, 4, 4), "rescale": (shape[0], 1), "alpha": ()}


def _glora(shape: Shape) -> Mapping[str, Shape]:
    (out, width), ones = shape[:2], (1,) * (len(shape) - 2)
    window = shape[2:]
    inner = {"a1.weight": (width, 2, *ones), "a2.weight": (2, width, *ones)}
    return inner | {"b1.weight": (out, 2, *ones), "b2.weight": (2, width, *window), "alpha": ()}


_LYCORIS = {
    "loha": _loha,
    "lokr": _lokr,
    "tucker": _tucker,
    "full": lambda shape: {"diff": shape, "diff_b": (shape[0],)},
    "dora": _dora,
    "dora-of-others": _dora_of_others,
    "ia3": _ia3,
    "oft": _oft,
    "boft": _boft,
    "glora": _glora,
}


def _peft_dora(shape: Shape) -> Mapping[str, Shape]:
    up = (shape[0], 2, *(1,) * (len(shape) - 2))
    magnitude = (shape[0],) if len(shape) == 2 else (1, shape[0], 1, 1)
    pair = {"lora_A.weight": (2, *shape[1:]), "lora_B.weight": up}
    return pair | {"lora_magnitude_vector": magnitude}


def _peft_ia3(shape: Shape) -> Mapping[str, Shape]:
    return {"ia3_l": (shape[0], 1) if len(shape) == 2 else (1, shape[0], 1, 1)}


def _peft_boft(shape: Shape) -> Mapping[str, Shape]:
    width = int(np.prod(shape[1:]))
    return {"boft_R": (2, width // 4, 4, 4), "boft_s": (shape[0], 1)}


def _adalora(shape: Shape) -> Mapping[str, Shape]:
    return {"lora_A": (2, shape[1]), "lora_B": (shape[0], 2), "lora_E": (2, 1)}


def _vera(shape: Shape) -> Mapping[str, Shape]:
    return {"vera_lambda_b": (shape[0],), "vera_lambda_d": (2,)}


_LINEAR = {path: shape for path, shape in LAYERS.items() if len(shape) == 2}
_OFT_SETTINGS = {"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 5}
_FORMS = Callable[[Shape], Mapping[str, Shape]]
_PEFT: Mapping[str, tuple[_FORMS, Mapping[str, Shape], Mapping[str, object]]] = {
    "peft-dora": (_peft_dora, LAYERS, {"peft_type": "LORA", "lora_alpha": 4, "use_dora": True}),
    "peft-ia3": (_peft_ia3, LAYERS, {"peft_type": "IA3", "feedforward_modules": []}),
    "peft-oft": (lambda _: {"oft_R.weight": (1, 6)}, LAYERS, _OFT_SETTINGS),
    "peft-boft": (_peft_boft, LAYERS, {"peft_type": "BOFT"}),
    "adalora": (_adalora, _LINEAR, {"peft_type": "ADALORA", "lora_alpha": 4}),
    "vera": (_vera, _LINEAR, {"peft_type": "VERA"}),
}
CONFIG = "lora_adapter_metadata"


def families() -> dict[str, Family]:
    """A valid file of each family, by name: tensors and header strings."""
    rng = np.random.default_rng(0)
    found: dict[str, Family] = {}
    for name, form in _LYCORIS.items():
        tensors: Tensors = {}
        for path, shape in LAYERS.items():
            module = "lora_unet_" + path.replace(".", "_")
            made = _parts(form(shape))(rng)
            tensors |= {f"{module}.{end}": array for end, array in made.items()}
        for key in tensors:
            if key.endswith(".alpha"):
                tensors[key] = np.asarray(2.0, np.float16)
            elif key.endswith(".on_input"):
                tensors[key] = np.asarray("to_k" in key)
        turned = [key for key in tensors if name == "ia3" and "to_k.weight" in key]
        tensors |= {key: _some(rng, 1, 24) for key in turned}
        found[name] = tensors, {}
    for name, (form, layers, settings) in _PEFT.items():
        tensors = {}
        for path, shape in layers.items():
            made = _parts(form(shape))(rng)
            tensors |= {f"base_model.model.{path}.{end}": array for end, array in made.items()}
        if name == "vera":
            shared = {"vera_A": (2, 32), "vera_B": (32, 2)}
            tensors |= {f"base_model.{end}": _some(rng, *each) for end, each in shared.items()}
        found[name] = tensors, {"format": "pt", CONFIG: json.dumps(settings)}
    return found


# --- mutations that only these files have ---

_FACTORS = [0.0, -1.0, 1e-8, 1e3, 3e4]
_HUGE = [1e20, 1e38, 1e160, 1e300, 1e-160, 1e-300, 0.0]


def larger(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """All numbers of one tensor, or of all, times another: as far as their dtype goes."""
    dtype, factors = pick(rng, [(None, _FACTORS), (np.float32, _HUGE), (np.float64, _HUGE)])
    factor = pick(rng, factors)
    for key in [pick(rng, tensors)] if rng.random() < 0.7 else list(tensors):
        array = tensors[key]
        wide = array.astype(np.float64) * factor
        found = array.dtype if dtype is None else np.dtype(dtype)
        if found.kind == "f":
            most = float(np.finfo(found).max)
            tensors[key] = np.asarray(np.clip(wide, -most, most), found)


def zeros(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """A tensor of zeros, or a row of them."""
    key = pick(rng, tensors)
    array = np.array(tensors[key])
    if array.ndim and rng.random() < 0.5:
        array[: 1 + int(rng.integers(2))] = 0
    else:
        array[...] = 0
    tensors[key] = array


def other_axes(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """Axes in another order, an axis more or less, or other lengths of the same product."""
    key = pick(rng, tensors)
    array = tensors[key]
    order = rng.permutation(array.ndim)
    size = array.size
    forms = [(size, 1), (1, size), (1, size, 1, 1), (size, 1, 1, 1)]
    forms += [(size // n, n) for n in (2, 3, 4, 8) if size % n == 0]
    forms += [(size // n**2, n, n) for n in (1, 2, 4) if size % n**2 == 0]
    forms += [(1, size // n**2, n, n) for n in (1, 2, 4) if size % n**2 == 0]
    tensors[key] = array.transpose(order) if rng.random() < 0.3 else array.reshape(pick(rng, forms))


def other_length(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """One axis longer or shorter: blocks that do not divide, halves that do not meet."""
    key = pick(rng, tensors)
    array = tensors[key]
    if array.size > 1:
        axis = int(rng.integers(array.ndim))
        length = pick(rng, [1, 2, 3, 5, array.shape[axis] - 1, array.shape[axis] + 1])
        tensors[key] = np.take(array, range(length), axis=axis, mode="wrap")


def other_family(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """Tensors of another family beside, or instead of, those of a module."""
    arrays, strings = pick(rng, FAMILIES.values())
    key = pick(rng, arrays)
    tensors[key] = arrays[key]
    if rng.random() < 0.3:
        metadata |= strings


def other_end(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """A tensor under the end of another."""
    key, other = pick(rng, tensors), pick(rng, pick(rng, FAMILIES.values())[0])
    name, end = (text.rpartition(".") for text in (key.removesuffix(".weight"), other))
    array = tensors[key] if rng.random() < 0.5 else tensors.pop(key)
    tensors[f"{name[0]}.{end[2]}"] = array


_SETTINGS: Mapping[str, list[object]] = {
    "peft_type": ["LORA", "IA3", "OFT", "BOFT", "ADALORA", "VERA", "LOHA", "LOKR", "HRA", 7, None],
    "use_cayley_neumann": [True, False, None, 1, "x"],
    "num_cayley_neumann_terms": [0, 1, 2, 3, 50, 10**9, -1, 2.5, "5", None],
    "coft": [True, False, "x"],
    "eps": [0, 1e-9, 1e300, -1.0, "x", [], None, True],
    "feedforward_modules": [["to_q"], "to_q", [3], {}, None, [""]],
    "lora_alpha": [0, -1, 1e300, 1e-300, None, "x", [], {}, True],
    "alpha": [0, 8, None],
    "use_dora": [True, False, 0],
    "use_rslora": [True],
    "alpha_pattern": [{"to_q": 3}, {"to_q": None}, []],
}


def setting(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """Another setting of peft's, or none."""
    try:
        fields = json.loads(metadata.get(CONFIG, "{}"))
    except (ValueError, RecursionError):
        return  # an earlier mutation put something else there
    if not isinstance(fields, dict):
        return
    name = pick(rng, _SETTINGS)
    if rng.random() < 0.2:
        fields.pop(name, None)
    else:
        fields[name] = pick(rng, _SETTINGS[name])
    metadata[CONFIG] = json.dumps(fields)


FAMILIES = families()
STRUCTURE = [larger, larger, zeros, other_axes, other_length, other_family, other_end, setting]
