"""A UNet as diffusers keeps it: `config.json` and, beside it, its tensors in one of three forms."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prolora_jax.architectures.flax_trees import unet_to_flax
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.placement import unet_keys
from prolora_jax.errors import BaseModelError, OutputError, Refusal
from prolora_jax.io import atomic
from prolora_jax.io.adapters.flax_file import write_tree
from prolora_jax.io.base_models.checkpoint import open_tensors
from prolora_jax.io.base_models.model_files import UNET_STEMS
from prolora_jax.io.containers.orbax_tree import write_orbax
from prolora_jax.io.containers.tensors import write_tensors
from prolora_jax.io.documents import BadDocument, read_json_document

Container = Literal["safetensors", "msgpack", "orbax"]
_CONFIG = "config.json"


def read_unet_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a UNet, norms and biases too, read whole.

    Args:
        path: whatever `load_base_model` takes, on the disk.

    Returns:
        Tensors in torch layout and their stored dtype, by torch key (`conv_in.weight`).

    Raises:
        BaseModelError: no UNet is there, or a tensor's dtype is not one for weights.
    """
    opened = open_tensors(path)
    keys = unet_keys({key: file.shape(stored) for key, (file, stored) in opened.items()})
    if not keys:
        raise BaseModelError(
            f"{path}: found {len(opened)} tensors, none of a UNet; expected one in diffusers or "
            f"LDM naming; give the UNet's folder or file",
            code=Refusal.UNREADABLE_BASE,
        )
    tensors = {}
    for name, key in keys.items():
        file, stored = opened[key]
        file.require_weight(stored)
        tensors[name.removeprefix(UNET)] = file.tensor(stored)
    return tensors


def read_unet_config(path: Path) -> tuple[dict[str, Any], Path]:
    """The configuration of a UNet, and the file it is in.

    Args:
        path: the UNet's folder, its pipeline's, or a file with its tensors.

    Returns:
        The content of the `config.json` beside the tensors, and its path.

    Raises:
        BaseModelError: there is none, or it is not readable.
    """
    folder = path.parent if path.is_file() else path
    file = next((f for f in (folder / "unet" / _CONFIG, folder / _CONFIG) if f.is_file()), None)
    if file is None:
        raise BaseModelError(
            f"{path}: found no {_CONFIG} beside the weights; expected diffusers' configuration of "
            f"the UNet; put it there, or give the configuration",
            code=Refusal.MISSING_FILE,
        )
    try:
        config, found = read_json_document(file), "found no JSON object"
    except BadDocument as failure:
        config, found = None, str(failure)
    if not isinstance(config, dict):
        raise BaseModelError(
            f"{file}: {found}; expected diffusers' configuration of a UNet; fetch it again",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    return config, file


def write_unet(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    container: Container,
) -> None:
    """Write a UNet's folder.

    Args:
        folder: where to; made if need be.
        config: diffusers' configuration.
        tensors: all tensors by torch key, in torch layout.
        container: `safetensors` and `msgpack` are what diffusers reads; of `orbax` the tree is
            in `folder / "params"`.

    Raises:
        OutputError: it cannot be written, or a UNet is there already.
    """
    config_file = folder / _CONFIG
    if config_file.exists():
        raise OutputError(
            f"{config_file}: found a file; expected a folder without a UNet; name another",
            code=Refusal.OUTPUT_EXISTS,
        )
    torch_stem, flax_stem = UNET_STEMS
    if container == "safetensors":
        write_tensors(folder / f"{torch_stem}.safetensors", tensors, {"format": "pt"})
    elif container == "msgpack":
        write_tree(folder / f"{flax_stem}.msgpack", unet_to_flax(tensors))
    else:
        write_orbax(folder / "params", unet_to_flax(tensors))
    # Last: without it the folder is no UNet.
    atomic.write_text(config_file, json.dumps(dict(config), indent=2) + "\n")
