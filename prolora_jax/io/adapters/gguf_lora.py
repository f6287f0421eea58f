"""llama.cpp's LoRA files: the header of a GGUF file, and pairs of tensors."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prolora_jax.adapters.formats.gguf import ENDS, places_in
from prolora_jax.adapters.formats.keys import GGUF_FACTS, said_in
from prolora_jax.architectures.llm.names import LM
from prolora_jax.errors import AdapterRefused, BaseModelError, OutputError, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.containers.packed.gguf_file import GgufFile
from prolora_jax.io.containers.packed.gguf_header import MAGIC
from prolora_jax.io.guarded import is_regular, open_regular

_BLOCK = re.compile(r"blk\.([0-9]{1,5})\.")
_HEADER = "prolora.header"
_ALPHA, _KIND, _TYPE = "adapter.lora.alpha", "adapter.type", "general.type"


def is_gguf(path: Path) -> bool:
    """Whether a file starts as GGUF files do."""
    if not is_regular(path):
        return False
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def is_gguf_adapter(path: Path) -> bool:
    """Whether a file among others is an adapter of llama.cpp's, and no model, by its header."""
    if path.suffix.lower() != ".gguf" or not is_gguf(path):
        return False
    try:
        return GgufFile(path).values.get(_TYPE) == "adapter"
    except BaseModelError:
        return False


def read_gguf(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read an adapter of llama.cpp's.

    Args:
        path: `is_gguf`.

    Returns:
        Tensors by key, and header strings: architecture and alpha are one of them.

    Raises:
        AdapterRefused: it is a model, or of another kind than LoRA, or damaged.
    """
    try:
        return _read(path)
    except BaseModelError as failure:
        raise AdapterRefused(str(failure), code=failure.code) from failure


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    file = GgufFile(path)
    said = file.values
    alpha = said.get(_ALPHA)
    told = said.get(_TYPE), said.get(_KIND), alpha
    if told[:2] != ("adapter", "lora") or not isinstance(alpha, float) or not math.isfinite(alpha):
        raise AdapterRefused(
            f"{path}: not-an-adapter:gguf: found {_TYPE}, {_KIND}, {_ALPHA} {told!r:.120}; "
            f"expected an adapter, lora and a number, as llama.cpp's converter writes; give an "
            f"adapter file",
            code=Refusal.NOT_AN_ADAPTER,
        )
    odd = [key for key in said if key.startswith("adapter.alora")]
    if odd:
        raise AdapterRefused(
            f"{path}: unsupported-algorithm:aLoRA: found {odd[0]}; expected plain LoRA; its pairs "
            f"are active only after certain tokens",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    architecture = str(said.get("general.architecture"))
    blocks = {int(found[1]) for key in file.keys if (found := _BLOCK.match(key))}
    places = places_in(str(path), architecture, sorted(blocks), 1, 1)
    paths = {place.name: path for path, place in places.items()}
    tensors: dict[str, np.ndarray] = {}
    for key in file.keys:
        name, end = key[:-7], ENDS.get(key[-7:])
        if end is None or name not in paths:
            raise AdapterRefused(
                f"{path}: found tensor {key}; expected pairs of {architecture}'s layers; take it "
                f"out, or convert the adapter that it was made from",
                code=Refusal.UNKNOWN_KEYS,
            )
        weight = file.weight(key)
        count = math.prod(weight.shape)
        tensors[f"{LM}{paths[name]}{end}"] = weight.numbers(0, count).reshape(weight.shape)
    rows = "pairs" if any(place.heads for place in places.values()) else "halves"
    facts = {"architecture": architecture, "alpha": alpha, "rows": rows}
    return tensors, _own_header(said) | {GGUF_FACTS: json.dumps(facts)}


def _own_header(said: Mapping[str, Any]) -> dict[str, str]:
    """The header strings that `write_gguf` has put into a file; none of anything else."""
    try:
        found = json.loads(said.get(_HEADER) or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return said_in({key: text for key, text in found.items() if isinstance(text, str)})


def write_gguf(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write an adapter of llama.cpp's, whole or not at all.

    Args:
        path: where to.
        tensors: from `formats.dump` for format `gguf`.
        metadata: header strings, architecture and alpha among them.

    Raises:
        OutputError: it cannot be written, or the gguf package is not installed.
    """
    try:
        import gguf
    except ImportError as failure:
        raise OutputError(
            f"{path}: GGUF files are written with the gguf package, which is not installed; pip "
            f"install 'prolora_jax[gguf]', or write peft",
            code=Refusal.MISSING_LIBRARY,
        ) from failure
    facts = json.loads(metadata[GGUF_FACTS])
    header = {key: text for key, text in metadata.items() if key != GGUF_FACTS}
    with atomic.atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, facts["architecture"])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(_KIND, "lora")
        writer.add_float32(_ALPHA, facts["alpha"])
        writer.add_string(_HEADER, json.dumps(header))
        for name, array in tensors.items():
            whole = np.ascontiguousarray(array)
            if whole.dtype == np.dtype(ml_dtypes.bfloat16):
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(name, whole.view(np.uint8), raw_dtype=kind)
            else:
                writer.add_tensor(name, whole)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
