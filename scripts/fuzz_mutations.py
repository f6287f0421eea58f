"""Ways to break an adapter file, at the level of its bytes, its header and its keys (`fuzz.py`)."""

import json
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

Rng = np.random.Generator
Tensors = dict[str, np.ndarray]


def pick(rng: Rng, items: Any) -> Any:
    """One of some items of any type."""
    items = list(items)
    return items[rng.integers(len(items))]


# --- bytes ---


def flip_bits(rng: Rng, data: bytes) -> bytes:
    """Up to 8 bits, mostly in the header."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9) if data else 0):
        end = len(data) if rng.random() < 0.3 else min(len(data), 2000)
        changed[rng.integers(end)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(rng: Rng, data: bytes) -> bytes:
    """Cut off the end."""
    return data[: rng.integers(len(data) + 1)]


def append(rng: Rng, data: bytes) -> bytes:
    """A few bytes more."""
    return data + rng.bytes(int(rng.integers(1, 64)))


def insert(rng: Rng, data: bytes) -> bytes:
    """Bytes in between."""
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 32))) + data[at:]


def delete(rng: Rng, data: bytes) -> bytes:
    """Some bytes less."""
    at = int(rng.integers(len(data) + 1))
    return data[:at] + data[at + int(rng.integers(1, 32)) :]


def repeat(rng: Rng, data: bytes) -> bytes:
    """A piece twice."""
    start, end = sorted(int(i) for i in rng.integers(0, len(data) + 1, 2))
    return data[:end] + data[start:end] + data[end:]


def overwrite(rng: Rng, data: bytes) -> bytes:
    """A run of equal bytes."""
    at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 64))
    return data[:at] + pick(rng, [b"\0", b"\xff", b" ", b"{", b'"']) * length + data[at + length :]


def length_field(rng: Rng, data: bytes) -> bytes:
    """Another length of the header."""
    now = int.from_bytes(data[:8], "little")
    near = [now - 1, now + 1, now // 2, now * 2, len(data) - 8, len(data) - 9, len(data) - 7]
    far = [0, 1, 2, 8, 2**16, 64 * 2**20, 64 * 2**20 + 1, 10**8, 10**8 + 1, 2**31, 2**32, 2**63]
    length = max(0, pick(rng, [*near, *far, 2**64 - 1]))
    return (length % 2**64).to_bytes(8, "little") + data[8:]


def magic(rng: Rng, data: bytes) -> bytes:
    """The first bytes of something else."""
    starts = [
        b"PK\x03\x04",
        b"\x80\x02}q\x00",
        b"GGUF",
        b"<!DOCTYPE html>",
        b"\x1f\x8b",
        b"version ",
    ]
    start = pick(rng, starts)
    return start + data[len(start) :]


BYTES: list[Callable[[Rng, bytes], bytes]] = [
    *(flip_bits, truncate, append, insert, delete, repeat, overwrite, length_field, magic)
]

# --- header ---

NUMBERS = ["-1", "0", "1", "3", "65536", str(2**31), str(2**32), str(2**53 + 1), str(2**63)] + [
    *(str(2**64), str(10**30), "9" * 5000, "1e400", "1e3", "-0", "0.5", "NaN", "Infinity", "null"),
    *("true", '"4"', "[]", "{}", "[[1]]", "[" * 3000 + "]" * 3000, "\\u0000"),
]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64"] + [
    *("I64", "I32", "I16", "I8", "U64", "U8", "BOOL", "", "f16", "Q4_0", "F16 ", "\U0001f600"),
]
NAMES = ["", "\x00", "\n", "\x1b[31mred", "é", "\u202e", "\U0001f600", "a" * 511, "b" * 5000]
NAMES += ["__metadata__", "..", "../../etc/passwd", "{", '"', "\\", "\ud800", "x.alpha", ".alpha"]
TEXTS = ["", "{", "[]", "null", "NaN", "{}", '{"lora_alpha": 1e400}', '{"unet.lora_alpha": []}'] + [
    '{"lora_alpha": 4, "alpha_pattern": {"([a-z0-9_.]+)+!": 1}}',
    '{"lora_alpha": 4, "alpha_pattern": {".*.*.*.*.*.*.*.*!": 1}}',
    '{"unet.lora_alpha": ' + "9" * 400 + "}",
    '{"unet.lora_alpha": ' + "9" * 5000 + "}",
    '{"unet.lora_alpha": 4, "unet.use_rslora": true}',
    '{"unet.init_lora_weights": "pissa"}',
    *("[" * 100_000, "x" * 200_000, "\x1b[2J", "\x00", "a\nb", "[bold]", "\u202e"),
]
STRINGS = ["lora_adapter_metadata"] * 6
STRINGS += ["ss_network_dim", "ss_base_model_version", "format", "prolora"]


def with_header(edit: Callable[[Rng, dict, list[tuple[str, str]]], None]):
    """A mutation of the bytes from one of the header's JSON.

    `edit` changes the object, and may ask for texts to be replaced in what is written.
    """

    def mutate(rng: Rng, data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + length])
            replaced: list[tuple[str, str]] = []
            edit(rng, header, replaced)
            text = json.dumps(header)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
            return data  # an earlier mutation left nothing to edit
        for old, new in replaced:
            text = text.replace(json.dumps(old), new, 1)
        raw = text.encode()
        return len(raw).to_bytes(8, "little") + raw + data[8 + length :]

    mutate.__name__ = edit.__name__
    return mutate


def entry(rng: Rng, header: dict) -> dict:
    """What the header says of one tensor."""
    return header[pick(rng, [name for name in header if name != "__metadata__"])]


def odd_number(rng: Rng, header: dict, replaced: list) -> None:
    """A number that is none, or too large, in a shape or in offsets."""
    numbers = entry(rng, header)[pick(rng, ["shape", "data_offsets"])]
    if numbers and rng.random() < 0.8:
        numbers[rng.integers(len(numbers))] = "@@"
    else:
        numbers.append("@@")
    replaced.append(("@@", pick(rng, NUMBERS)))


def other_shape(rng: Rng, header: dict, replaced: list) -> None:
    """Another shape, sometimes of as many numbers."""
    found = entry(rng, header)
    shape = found["shape"]
    flat = int(np.prod([int(n) for n in shape])) if shape else 1
    choices = [shape[::-1], [flat], [1, *shape], [*shape, 1], [], [0], [0, 2**40], [1] * 70]
    found["shape"] = pick(rng, [*choices, [1] * 8 + shape, [flat, 1, 1, 1]])


def other_dtype(rng: Rng, header: dict, replaced: list) -> None:
    """Another dtype."""
    entry(rng, header)["dtype"] = pick(rng, DTYPES)


def swap_entries(rng: Rng, header: dict, replaced: list) -> None:
    """Two tensors change places, or have the same bytes."""
    first, second = entry(rng, header), entry(rng, header)
    offsets = first["data_offsets"]
    first["data_offsets"] = second["data_offsets"]
    if rng.random() < 0.5:
        second["data_offsets"] = offsets


def field_gone(rng: Rng, header: dict, replaced: list) -> None:
    """A field less, more, or of another type."""
    found = entry(rng, header)
    name = pick(rng, ["dtype", "shape", "data_offsets"])
    kind = rng.integers(3)
    if kind == 0:
        del found[name]
    elif kind == 1:
        found["extra"] = "@@"
        replaced.append(("@@", pick(rng, NUMBERS)))
    else:
        found[name] = "@@"
        replaced.append(("@@", pick(rng, NUMBERS)))


def equal_names(rng: Rng, header: dict, replaced: list) -> None:
    """One name twice: a tensor's, a field's, the metadata's."""
    name = pick(rng, header)
    again = json.dumps(header[name]).replace("[", "[ ")
    header["@@"] = "@@@"
    replaced += [("@@", json.dumps(name)), ("@@@", again)]


def odd_name(rng: Rng, header: dict, replaced: list) -> None:
    """A tensor under a strange name."""
    name = pick(rng, header)
    header[pick(rng, NAMES)] = header.pop(name)


def odd_metadata(rng: Rng, header: dict, replaced: list) -> None:
    """A header string that is strange, or none."""
    metadata = header.setdefault("__metadata__", {})
    metadata[pick(rng, [*STRINGS, *NAMES])] = pick(rng, TEXTS)
    if rng.random() < 0.2:
        metadata["x"] = "@@"
        replaced.append(("@@", pick(rng, NUMBERS)))


def no_metadata(rng: Rng, header: dict, replaced: list) -> None:
    """Metadata that is no object."""
    header["__metadata__"] = "@@"
    replaced.append(("@@", pick(rng, NUMBERS)))


def many_tensors(rng: Rng, header: dict, replaced: list) -> None:
    """Hundreds of empty tensors more."""
    found = entry(rng, header)
    end = found["data_offsets"][1]
    for i in range(int(rng.integers(1, 1000))):
        header[f"empty.{i}"] = {"dtype": "F16", "shape": [0], "data_offsets": [end, end]}


HEADER = [
    with_header(edit)
    for edit in (odd_number, other_shape, other_dtype, swap_entries, field_gone, equal_names)
    + (odd_name, odd_metadata, no_metadata, many_tensors)
]

# --- keys ---

SUFFIXES = [
    ".lora_down.weight",
    ".lora_up.weight",
    ".alpha",
    ".lora_A.weight",
    ".lora_B.weight",
] + [
    *(".lora.down.weight", ".lora.up.weight", ".lora_A.default.weight", ".lora_A", ".lora_B"),
    *(".processor.to_q_lora.down.weight", "_lora.up.weight", ".lora_mid.weight", ".dora_scale"),
    *(".hada_w1_a", ".lokr_w1", ".diff", ".diff_b", ".oft_blocks", ".lora_E", ".lora_B.bias"),
    *(".absmax", ".scale_weight", ".weight", "", ".lora_linear_layer.up.weight"),
]
PREFIXES = [
    "lora_unet_",
    "unet.",
    "",
    "base_model.model.",
    "unet.base_model.model.",
    "lora_te1_",
] + [
    *("lora_te_", "lora_te2_", "text_encoder.", "transformer.", "diffusion_model.", "lycoris_"),
    *("model.diffusion_model.", "bundle_emb.x.", "lllite_unet_", "unet:0:"),
]
ALPHAS = [0.0, -0.0, -1.0, 1e-30, 1e30, 65504.0, np.nan, np.inf, -np.inf, 2**63, 0.5]
SHAPES = [(), (1,), (0,), (2, 0), (1, 1), (2, 2, 2), (2, 2, 2, 2), (1,) * 5, (3,), (7, 5)]
TYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int64, np.int8, np.uint8] + [
    *(np.bool_, np.uint64, np.int32)
]


def rename(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """A key with characters changed, in place."""
    key = pick(rng, tensors)
    at = int(rng.integers(len(key) + 1))
    new = key[:at] + pick(rng, [".", "_", "9", "x", "..", "", " "]) + key[at + 1 :]
    tensors[new] = tensors.pop(key)


def drop(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """One tensor, or most of them, gone."""
    for _ in range(min(len(tensors) - 1, pick(rng, [1, 1, 1, len(tensors)]))):
        del tensors[pick(rng, tensors)]


def other_suffix(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """A tensor under another suffix, or under two."""
    key = pick(rng, tensors)
    name = next((key.removesuffix(s) for s in SUFFIXES if s and key.endswith(s)), key)
    array = tensors[key] if rng.random() < 0.5 else tensors.pop(key)
    tensors[name + pick(rng, SUFFIXES)] = array * 2 if rng.random() < 0.3 else array


def other_prefix(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """One module, or all, of another component."""
    old = pick(rng, PREFIXES)
    new = pick(rng, PREFIXES)
    for key in [key for key in tensors if key.startswith(old)][:: pick(rng, [1, 3])]:
        tensors[new + key.removeprefix(old)] = tensors.pop(key)


def swap(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """Two tensors change names."""
    a, b = pick(rng, tensors), pick(rng, tensors)
    tensors[a], tensors[b] = tensors[b], tensors[a]


def extra(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """A tensor that belongs to nothing."""
    key = pick(rng, PREFIXES) + pick(rng, ["emb_params", "x", "to_q", ""]) + pick(rng, SUFFIXES)
    tensors[key or "x"] = np.ones(pick(rng, SHAPES), pick(rng, TYPES))


def alpha(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """An odd alpha."""
    key = pick(rng, tensors)
    name = next((key.removesuffix(s) for s in SUFFIXES if s and key.endswith(s)), key)
    with np.errstate(all="ignore"):
        value = np.full(pick(rng, [(), (), (1,), (2,), (0,)]), pick(rng, ALPHAS))
        dtype = pick(rng, TYPES) if np.isfinite(value).all() else pick(rng, TYPES[:4])
        tensors[f"{name}.alpha"] = value.astype(dtype)


def bad_numbers(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """NaN, infinity or the largest number in a tensor."""
    key = pick(rng, tensors)
    array = tensors[key].copy()
    if array.size and array.dtype.kind not in "iub":
        array.reshape(-1)[rng.integers(array.size)] = pick(rng, [np.nan, np.inf, 65504, 0])
    tensors[key] = array


def other_array(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """Another shape or dtype."""
    key = pick(rng, tensors)
    array = tensors[key]
    with np.errstate(all="ignore"):
        tensors[key] = pick(
            rng,
            [
                array.T,
                array[..., None],
                array.reshape(-1)[:0],
                array.reshape(-1),
                array.astype(pick(rng, TYPES[:5])),
                np.zeros(pick(rng, SHAPES), pick(rng, TYPES)),
            ],
        )


def configuration(rng: Rng, tensors: Tensors, metadata: dict) -> None:
    """Strange header strings."""
    metadata[pick(rng, STRINGS)] = pick(rng, TEXTS)


KEYS = [rename, drop, other_suffix, other_prefix, swap, extra, alpha, bad_numbers, other_array]
KEYS += [configuration]
