"""PEFT's folders: `adapter_config.json` beside `adapter_model.safetensors`.

A folder holds the adapter of one network. Trainers that adapt several networks make a folder of
folders, `unet/` and `text_encoder/`; peft itself makes one when an adapter has a name of its own.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from prolora_jax.adapters.formats.keys import PEFT_WRAPPER, said_in
from prolora_jax.adapters.formats.lora_config import HEADER_KEY
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.containers.indexed_tree import is_indexed
from prolora_jax.io.containers.tensors import read_tensors
from prolora_jax.io.documents import BadDocument, parse_json
from prolora_jax.io.guarded import is_regular, read_small

CONFIG = "adapter_config.json"
ADAPTER_SUFFIXES = frozenset({".safetensors", ".sft", ".msgpack", ".pt", ".bin", ".ckpt", ".pth"})
"""Files in a folder that are taken for adapters; those that cannot be used are then refused."""

MLX_WEIGHTS = "adapters.safetensors"
"""What MLX-LM has instead, beside a configuration by the same name."""

_MERGED = "_resume_model"
_WEIGHTS, _PICKLE = WEIGHT_NAMES = "adapter_model.safetensors", "adapter_model.bin"
_LARGEST_CONFIG = 2**21
"""Bytes. One that names every module of a large net with a rank of its own has 200 KB."""
COMPONENT_NAMES = ("unet", "text_encoder", "text_encoder_2", "transformer", "transformer_2")
_ALONE = frozenset({"unet", "lm", "transformer"})
"""Networks whose adapter is the folder itself, where it has no other."""
# The network in a folder of its own, where peft's configuration names its class.
_COMPONENT_BY_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}
Tensors = dict[str, np.ndarray]
Read = Callable[..., tuple[Tensors, dict[str, str]]]
Write = Callable[[Path, Tensors, Mapping[str, str]], None]


def read_folder(
    folder: Path, read: Read = read_tensors, unpickle: Read | None = None
) -> tuple[Tensors, dict[str, str]]:
    """Read a PEFT folder, or a folder of PEFT folders.

    Args:
        folder: what `save_pretrained` made.
        read: reads one safetensors file, as `read_tensors` does.
        unpickle: reads `adapter_model.bin`, where there is nothing else; None refuses it.

    Returns:
        The tensors, keys with their component in front where the folder says which it is, and
        the header strings; the configuration is one of them, as in diffusers' files.

    Raises:
        UsageError: it is no such folder, or one of several adapters.
        AdapterRefused: a file in it is missing or cannot be used.
    """
    if os.path.lexists(folder / CONFIG):
        return _read_one(folder, None, read, unpickle)
    inner = sorted(place.parent for place in folder.glob(f"*/{CONFIG}"))
    if (
        len(inner) == 1
        and inner[0].name not in COMPONENT_NAMES
        and not has_others(folder, inner[0])
    ):
        return _read_one(inner[0], None, read, unpickle)
    names = [place.name for place in inner]
    if not names or not set(names) <= set(COMPONENT_NAMES):
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
        part, header = _read_one(place, place.name, read, unpickle)
        tensors |= part
        fields = json.loads(header.pop(HEADER_KEY))
        config |= {f"{place.name}.{field}": value for field, value in fields.items()}
        metadata |= header
    return tensors, metadata | {HEADER_KEY: json.dumps(config)}


def config_beside(path: Path) -> str | None:
    """The configuration in the folder of an adapter file, if there is one.

    Raises:
        OSError: it cannot be read, or is no regular file, or too large.
    """
    config = path.parent / CONFIG
    if not os.path.lexists(config):
        return None
    return read_small(config, _LARGEST_CONFIG).decode("utf-8", errors="replace")


def is_adapter_folder(folder: Path) -> bool:
    """Whether a PEFT adapter stands in the folder, or in a folder for one of its networks.

    A configuration without weights is one that lacks them, unless other adapters are in the folder:
    then it is a stray.
    """
    if any((place / name).exists() for place in _places(folder) for name in (_WEIGHTS, _PICKLE)):
        return True
    if (folder / CONFIG).exists() and (folder / MLX_WEIGHTS).exists():
        return True
    if is_indexed(folder) and not (folder / _MERGED).is_dir():
        return True  # of EasyDeL's; where it has merged the factors, they lie in there
    return has_adapter_files(folder) and not has_others(folder)


def has_adapter_files(folder: Path) -> bool:
    """Whether a file by a name of peft's stands in the folder, or in one for a network."""
    return any((place / name).exists() for place in _places(folder) for name in (CONFIG, _WEIGHTS))


def own_files(folder: Path) -> frozenset[Path]:
    """Where the weights and configurations of an adapter in a folder are, if they are."""
    names = (_WEIGHTS, _PICKLE, CONFIG, MLX_WEIGHTS)
    return frozenset(place / name for place in _places(folder) for name in names)


def _places(folder: Path) -> tuple[Path, ...]:
    return folder, *(folder / component for component in COMPONENT_NAMES)


def has_others(folder: Path, beside: Path | None = None) -> bool:
    """Whether files that may be adapters are in a folder, but for one folder in it."""
    for place, folders, files in os.walk(folder):
        if beside is not None and Path(place) == beside:
            folders.clear()
        elif any(Path(name).suffix.lower() in ADAPTER_SUFFIXES for name in files):
            return True
    return False


def write_folder(
    folder: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], write: Write
) -> None:
    """Write a PEFT folder; for text encoders, a folder of PEFT folders.

    A new folder appears whole or not at all. In one that exists, each file does.

    Args:
        folder: where to.
        tensors: from `formats.dump` for format `peft`.
        metadata: header strings, the configuration among them.
        write: writes one safetensors file.
    """
    with new_folder(folder) as place:
        _write_files(place, tensors, metadata, write)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Where to write what a folder is to hold: a new one appears whole, or not at all."""
    if folder.exists():
        yield folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{secrets.token_hex(8)}{atomic.TEMPORARY_SUFFIX}"
    try:
        yield temporary
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
        alone = components == [component] and component in _ALONE
        place = folder if alone else folder / component
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


def _read_one(
    folder: Path, component: str | None, read: Read, unpickle: Read | None
) -> tuple[Tensors, dict[str, str]]:
    weights, pickle = folder / _WEIGHTS, is_regular(folder / _PICKLE)
    if not is_regular(weights) and pickle and unpickle is not None:
        weights, read = folder / _PICKLE, unpickle
    elif not is_regular(weights):
        raise AdapterRefused(
            f"{folder}: found {'adapter_model.bin, a pickle' if pickle else 'no weights'}; "
            f"expected {_WEIGHTS}; save the adapter with safe_serialization"
            f"{', or read a pickle that you trust with --allow-pickle' if pickle else ''}",
            code=Refusal.PICKLE if pickle else Refusal.MISSING_FILE,
        )
    tensors, metadata = read(weights, error=AdapterRefused)
    metadata = said_in(metadata)
    try:
        text = config_beside(weights) or ""
        fields = _fields(text)
    except (OSError, BadDocument) as failure:
        raise unfit_config(folder / CONFIG, failure) from failure
    network = fields.get("auto_mapping")
    name = network.get("base_model_class") if isinstance(network, dict) else None
    component = component or _COMPONENT_BY_CLASS.get(str(name))
    if component is not None:
        tensors = {
            f"{component}.{key}" if key.startswith(PEFT_WRAPPER) else key: array
            for key, array in tensors.items()
        }
    return tensors, metadata | {HEADER_KEY: text}


def _fields(text: str) -> dict[str, object]:
    fields = parse_json(text.encode())
    if not isinstance(fields, dict):
        raise BadDocument("found no JSON object")
    return fields


def unfit_config(config: Path, failure: OSError | BadDocument) -> AdapterRefused:
    """The refusal of an adapter whose configuration cannot be used, and why it cannot."""
    found = failure.strerror if isinstance(failure, OSError) else None
    return AdapterRefused(
        f"{config}: {found or failure}; expected peft's LoraConfig, which gives the scale; "
        f"fetch the folder again",
        code=Refusal.UNKNOWN_KEYS,
    )
