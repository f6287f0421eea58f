"""MLX-LM's folders: its own `adapter_config.json` beside `adapters.safetensors`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from prolora_jax.adapters.formats.keys import MLX_CONFIG, said_in
from prolora_jax.errors import AdapterRefused
from prolora_jax.io import atomic
from prolora_jax.io.adapters.peft_folder import (
    CONFIG,
    MLX_WEIGHTS,
    Read,
    Tensors,
    Write,
    config_beside,
    new_folder,
    unfit_config,
)
from prolora_jax.io.containers.tensors import read_tensors
from prolora_jax.io.documents import BadDocument, parse_json
from prolora_jax.io.guarded import is_regular

_ENDS = (".lora_a", ".lora_b")


def is_mlx_folder(folder: Path) -> bool:
    """Whether a folder is what MLX-LM's trainer writes; checkpoints may stand beside."""
    return is_regular(folder / MLX_WEIGHTS) and is_regular(folder / CONFIG)


def read_mlx(folder: Path, read: Read = read_tensors) -> tuple[Tensors, dict[str, str]]:
    """Read such a folder.

    Args:
        folder: `is_mlx_folder`.
        read: reads one safetensors file, as `read_tensors` does.

    Returns:
        The tensors, and the header strings; the configuration is one of them.

    Raises:
        AdapterRefused: a file in it cannot be used.
    """
    tensors, metadata = read(folder / MLX_WEIGHTS, error=AdapterRefused)
    return tensors, said_in(metadata) | mlx_config_beside(folder / MLX_WEIGHTS, tensors)


def mlx_config_beside(path: Path, keys: Mapping[str, object]) -> dict[str, str]:
    """The configuration in the folder of a file of MLX-LM's, as a header string; none of others.

    Raises:
        AdapterRefused: it cannot be read, or is none.
    """
    if not any(key.endswith(_ENDS) for key in keys):
        return {}
    text = _config_text(path)
    return {} if text is None else {MLX_CONFIG: text}


def _config_text(path: Path) -> str | None:
    try:
        text = config_beside(path)
        if text is not None and not isinstance(parse_json(text.encode()), dict):
            raise BadDocument("found no JSON object")
    except (OSError, BadDocument) as failure:
        raise unfit_config(path.parent / CONFIG, failure) from failure
    return text


def write_mlx(
    folder: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], write: Write
) -> None:
    """Write such a folder; a new one appears whole or not at all.

    Args:
        folder: where to.
        tensors: from `formats.dump` for format `mlx`.
        metadata: header strings, the configuration among them.
        write: writes one safetensors file.
    """
    header = {key: text for key, text in metadata.items() if key != MLX_CONFIG}
    with new_folder(folder) as place:
        write(place / MLX_WEIGHTS, dict(tensors), header)
        atomic.write_text(place / CONFIG, metadata[MLX_CONFIG] + "\n")
