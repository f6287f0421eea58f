"""Weights of encoders: where they are, on the disk or the hub, and their tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.containers.tensors import TensorFile
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import is_regular

_SAFE = ".safetensors"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class PublishedWeights:
    """Where an encoder's weights are published.

    Attributes:
        name: what its file is called in a folder of weights, without the ending.
        hub_id: of the model on the hub.
        file: the file there; a pickle is never fetched, and has to be converted.
    """

    name: str
    hub_id: str
    file: str = "model.safetensors"


def find_weights(published: PublishedWeights, weights_dir: Path | None) -> Path:
    """The file with an encoder's weights.

    Args:
        published: which encoder.
        weights_dir: folder with `NAME.safetensors`, or `NAME/model.safetensors` with or without a
            `config.json` beside it; None for the hub, and what was fetched from it before.

    Returns:
        An existing file.

    Raises:
        UsageError: it is not in the folder, the hub has only a pickle, or does not hand it out.
    """
    if weights_dir is None:
        return _fetched(published)
    name = published.name
    wanted = (weights_dir / f"{name}{_SAFE}", weights_dir / name / f"model{_SAFE}")
    for place in (*wanted, weights_dir / name / published.file):
        if place.suffix == _SAFE and is_regular(place):
            return place
    pickles = [place.with_suffix(ending) for place in wanted for ending in _PICKLES] + [
        weights_dir / published.file
    ]
    found = next((place for place in pickles if is_regular(place)), None)
    what = "no such file"
    if found is not None and found.suffix != _SAFE:
        what = f"found {found.name}, a pickle, which may run code when opened"
    raise UsageError(
        f"{wanted[0]}: {what}; expected the weights of {name} as safetensors, published as "
        f"{published.file} of {published.hub_id}; fetch them, convert a pickle in a sandbox, and "
        f"put them there",
        code=Refusal.MISSING_FILE if found is None else Refusal.PICKLE,
    )


def read_weights(
    path: Path, keep: Callable[[str], bool] = lambda key: True
) -> dict[str, np.ndarray]:
    """The tensors of an encoder's file.

    Args:
        path: of a safetensors file.
        keep: which keys are read; a file may hold a tower that nobody wants.

    Returns:
        Tensors by key, in torch layout and their stored dtype.

    Raises:
        UsageError: there is no such file.
        BaseModelError: it is no intact safetensors file.
    """
    file = TensorFile(path, error=BaseModelError)
    return {key: file.tensor(key) for key in file.keys if keep(key)}


def config_beside(path: Path) -> dict[str, Any] | None:
    """The `config.json` in the folder of an encoder's file; None where there is none.

    Raises:
        BaseModelError: there is one that is no JSON object.
    """
    place = path.parent / "config.json"
    if not is_regular(place):
        return None
    try:
        found = read_json_document(place)
    except BadDocument as failure:
        found = str(failure)
    if not isinstance(found, dict):
        raise BaseModelError(
            f"{place}: found no JSON object; expected transformers' configuration of the encoder; "
            f"fetch it again",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    return found


def _fetched(published: PublishedWeights) -> Path:
    if not published.file.endswith(_SAFE):
        raise UsageError(
            f"{published.name}: {published.hub_id} has its weights as {published.file}, a pickle, "
            f"which may run code when opened; expected safetensors; convert it in a sandbox and "
            f"give the folder with {published.name}{_SAFE} (--weights-dir)",
            code=Refusal.PICKLE,
        )
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(published.hub_id, published.file))
    except Exception as failure:  # noqa: BLE001 (its HTTP libraries differ between versions)
        reason = " ".join(str(failure).split()).split(". ")[0][:200]
        raise UsageError(
            f"{published.name}: {published.file} of {published.hub_id} could not be fetched "
            f"({type(failure).__name__}: {reason}); expected it on the hub; go online, or give the "
            f"folder with {published.name}{_SAFE} (--weights-dir)",
            code=Refusal.MISSING_FILE,
        ) from failure
    return path
