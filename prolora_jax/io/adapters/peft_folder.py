"""PEFT's folders: `adapter_config.json` beside `adapter_model.safetensors`.

A folder holds the adapter of one network. Trainers that adapt several networks make a folder of
folders, `unet/` and `text_encoder/`; peft itself makes one when an adapter has a name of its own.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from prolora_jax.adapters.formats.keys import PEFT_WRAPPER
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.containers.tensors import read_tensors

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
# The network in a folder of its own, where peft's configuration names its class.
_COMPONENT_BY_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}
Tensors = dict[str, np.ndarray]
Read = Callable[..., tuple[Tensors, dict[str, str]]]
Write = Callable[[Path, Tensors, Mapping[str, str]], None]


def read_folder(folder: Path, read: Read = read_tensors) -> tuple[Tensors, dict[str, str]]:
    """Read a PEFT folder, or a folder of PEFT folders.

    Args:
        folder: what `save_pretrained` made.
        read: reads one safetensors file, as `read_tensors` does.

    Returns:
        The tensors, keys with their component in front where the folder says which it is, and
        the header strings; the configuration is one of them, as in diffusers' files.

    Raises:
        UsageError: it is no such folder, or one of several adapters.
        AdapterRefused: a file in it is missing or cannot be used.
    """
    if (folder / CONFIG).is_file():
        return _read_one(folder, None, read)
    inner = sorted(place.parent for place in folder.glob(f"*/{CONFIG}"))
    if len(inner) == 1 and inner[0].name not in _COMPONENTS:
        return _read_one(inner[0], None, read)
    names = [place.name for place in inner]
    if not names or not set(names) <= set(_COMPONENTS):
        found = f"adapters {', '.join(names)}" if names else f"no {CONFIG}"
        raise UsageError(
            f"{folder}: found a folder with {found}; expected an adapter file, or a folder that "
            f"peft wrote; name one",
            code=Refusal.MISSING_FILE,
        )
    tensors: Tensors = {}
    metadata: dict[str, str] = {}
    config: dict[str, object] = {}
    for place in inner:
        part, header = _read_one(place, place.name, read)
        tensors |= part
        fields = json.loads(header.pop(HEADER_KEY))
        config |= {f"{place.name}.{field}": value for field, value in fields.items()}
        metadata |= header
    return tensors, metadata | {HEADER_KEY: json.dumps(config)}


def config_beside(path: Path) -> str | None:
    """The configuration in the folder of an adapter file, if there is one."""
    config = path.parent / CONFIG
    return config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None


def is_adapter_folder(folder: Path) -> bool:
    """Whether a PEFT adapter stands in the folder, or in a folder for one of its networks."""
    places = (folder, *(folder / component for component in _COMPONENTS))
    return any((place / name).exists() for place in places for name in (CONFIG, _WEIGHTS))


def write_folder(
    folder: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], write: Write
) -> None:
    """Write a PEFT folder; for networks other than the UNet, a folder of PEFT folders.

    A new folder appears whole or not at all. In one that exists, each file does.

    Args:
        folder: where to.
        tensors: from `formats.dump` for format `peft`.
        metadata: header strings, the configuration among them.
        write: writes one safetensors file.
    """
    if folder.exists():
        _write_files(folder, tensors, metadata, write)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{secrets.token_hex(8)}{atomic.TEMPORARY_SUFFIX}"
    try:
        _write_files(temporary, tensors, metadata, write)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(
    folder: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], write: Write
) -> None:
    config: dict[str, object] = json.loads(metadata[HEADER_KEY])
    header = {key: text for key, text in metadata.items() if key != HEADER_KEY}
    components = sorted({field.partition(".")[0] for field in config})
    # What belongs to no network goes with the first.
    rest = {key: array for key, array in tensors.items() if PEFT_WRAPPER not in key}
    for component in components:
        place = folder if components == ["unet"] else folder / component
        prefix = f"{component}."
        own = {
            key.removeprefix(prefix): array
            for key, array in tensors.items()
            if key.startswith(prefix) and PEFT_WRAPPER in key
        }
        fields = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
        write(place / _WEIGHTS, own | rest, header)
        atomic.write_text(place / CONFIG, json.dumps(fields, indent=2, sort_keys=True) + "\n")
        rest = {}


def _read_one(folder: Path, component: str | None, read: Read) -> tuple[Tensors, dict[str, str]]:
    if not (folder / _WEIGHTS).is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        raise AdapterRefused(
            f"{folder}: found {'adapter_model.bin, a pickle' if pickle else 'no weights'}; "
            f"expected {_WEIGHTS}; save the adapter with safe_serialization",
            code=Refusal.PICKLE if pickle else Refusal.MISSING_FILE,
        )
    tensors, metadata = read(folder / _WEIGHTS, error=AdapterRefused)
    text = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
    fields = _fields(text, folder / CONFIG)
    network = fields.get("auto_mapping")
    name = network.get("base_model_class") if isinstance(network, dict) else None
    component = component or _COMPONENT_BY_CLASS.get(str(name))
    if component is not None:
        tensors = {
            f"{component}.{key}" if key.startswith(PEFT_WRAPPER) else key: array
            for key, array in tensors.items()
        }
    return tensors, metadata | {HEADER_KEY: text}


def _fields(text: str, path: Path) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise AdapterRefused(
            f"{path}: found no JSON object; expected peft's LoraConfig, which gives the scale; "
            f"fetch the folder again",
            code=Refusal.UNKNOWN_KEYS,
        )
    return fields
