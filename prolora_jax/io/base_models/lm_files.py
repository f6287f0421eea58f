"""A language model as transformers keeps it: `config.json`, and its tensors beside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.architectures.llm.names import LM, lm_name
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import load_base_model, open_tensors
from prolora_jax.io.documents import BadDocument, read_json_document

_CONFIG = "config.json"
_WEIGHT = ".weight"


def read_lm_config(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """The configuration of a language model, and the file it is in.

    Args:
        folder: with the weights, or a file in it.

    Returns:
        The content of `config.json`; of a model that also sees, the part about text.

    Raises:
        BaseModelError: there is none, or it cannot be read.
    """
    file = (folder.parent if folder.is_file() else folder) / _CONFIG
    try:
        raw, found = read_json_document(file), "found no JSON object"
    except (BadDocument, OSError) as failure:
        raw, found = None, str(failure)
    if not isinstance(raw, dict):
        raise BaseModelError(
            f"{file}: {found}; expected transformers' configuration of a language model beside "
            f"its weights; put it there",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    text = raw.get("text_config")
    return (text if isinstance(text, dict) else raw), file


def lm_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a language model, one after another, in torch's layout and stored dtype.

    Args:
        path: its folder or file.

    Yields:
        Name as a causal model of transformers has it (`model.norm.weight`), and the tensor; of
        layers `(out, in)`, whichever way they are stored.

    Raises:
        BaseModelError: no language model is there, or a dtype is not one for weights.
    """
    model = load_base_model(path)
    for key, (file, stored) in open_tensors(path).items():
        name = lm_name(key)
        if name is None or not name.endswith((_WEIGHT, ".bias")):
            continue  # another component, or a part of a packed weight
        layer = LM + name.removesuffix(_WEIGHT)
        if name.endswith(_WEIGHT) and layer in model.sources:
            yield name, model.weight(layer)
        else:
            file.require_weight(stored)
            yield name, file.tensor(stored)
