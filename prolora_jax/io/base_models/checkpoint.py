"""Base models on disk, in whatever container they come, read weight by weight."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from prolora_jax.architectures.identify import identified
from prolora_jax.architectures.placement import Placement, placements
from prolora_jax.architectures.recognition import spec_from_placements
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.hub import fetch_base_model, is_hub_id
from prolora_jax.io.base_models.model_files import UNET_STEMS, ModelPart, model_parts
from prolora_jax.io.containers.flax_checkpoint import FlaxFile
from prolora_jax.io.containers.msgpack_tree import MsgpackTree
from prolora_jax.io.containers.orbax_tree import OrbaxTree
from prolora_jax.io.containers.tensors import TensorFile
from prolora_jax.layout import kernel_to_weight, weight_to_matrix

_COMPONENTS = ("unet.", "text_encoder.", "text_encoder_2.")
_FINGERPRINT_LENGTH = 32


@runtime_checkable
class WeightFile(Protocol):
    """An open container whose tensors have torch keys and torch layout."""

    keys: tuple[str, ...]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        ...

    def tensor(self, key: str) -> np.ndarray:
        """Read one tensor, in its stored dtype."""
        ...

    def require_weight(self, key: str) -> None:
        """Raise unless its dtype is one for weights, without reading it."""
        ...


@dataclass(frozen=True)
class Source:
    """Where one weight is: an open file, and the place in it."""

    file: WeightFile
    placement: Placement

    def read(self) -> np.ndarray:
        """The weight in torch layout, in its stored dtype."""
        tensor = self.file.tensor(self.placement.key)
        if self.placement.rows is not None:
            tensor = tensor[slice(*self.placement.rows)]
        return kernel_to_weight(tensor) if self.placement.transposed else tensor


@dataclass(frozen=True)
class BaseModel:
    """A base model whose weights stay on disk until they are asked for.

    Attributes:
        spec: its modules.
        location: the path it was loaded from.
        sources: where each module's weight is.
    """

    spec: BaseModelSpec
    location: str
    sources: Mapping[str, Source] = field(repr=False)
    _fingerprints: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def weight(self, path: str) -> np.ndarray:
        """The torch weight of a module, `(out, in)` or `(out, in, kh, kw)`, in its stored dtype.

        Raises:
            KeyError: there is no such module.
            BaseModelError: its dtype is not supported.
        """
        if path not in self.sources:
            tail = path.rsplit(".", 1)[-1]
            near = [known for known in self.sources if known.endswith(tail)][:3]
            raise KeyError(
                f"{self.location}: no module {path!r}; nearest: {', '.join(near) or 'none'}"
            )
        return self.sources[path].read()

    def matrix(self, path: str) -> np.ndarray:
        """The weight as a float32 matrix `(out, in * kh * kw)`.

        Raises:
            BaseModelError: it holds a float64 number that float32 does not.
        """
        weight = weight_to_matrix(self.weight(path))
        with np.errstate(over="ignore"):  # looked at below
            matrix = weight.astype(np.float32)
        if weight.dtype == np.float64 and np.isinf(matrix).any() and np.isfinite(weight).all():
            raise BaseModelError(
                f"{self.location}: {path}: found {np.abs(weight).max():.3g} in a float64 weight; "
                f"expected numbers that float32 holds, in which all is computed; give a base model "
                f"whose weights are in that range",
                code=Refusal.NON_FINITE,
            )
        return matrix

    def fingerprint(self, path: str) -> str:
        """32 hex digits that depend on the weight's dtype, shape and bytes, and on nothing else.

        The weight is read once; changes of the file after that are not seen.
        """
        if path not in self._fingerprints:
            self._fingerprints[path] = self._digest(path)
        return self._fingerprints[path]

    def _digest(self, path: str) -> str:
        weight = self.weight(path)
        digest = hashlib.sha256(f"{weight.dtype.name} {weight.shape} ".encode())
        # As bytes first: NumPy hands out no buffer of bfloat16.
        digest.update(np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:_FINGERPRINT_LENGTH]


def load_base_model(path: str | Path) -> BaseModel:
    """Describe a base model and make its weights readable; no weight is read yet.

    Args:
        path: a single safetensors file in diffusers or LDM naming; a diffusers folder (the
            pipeline's, with its text encoders, or its `unet/`; one file or shards with an index);
            a Flax msgpack file or a folder with one; a folder that orbax wrote; or, where no such
            path exists, the id of a model on the hub, `org/name`.

    Returns:
        The model; its spec is named after the folder, file or id, and is the same whatever
        container the weights came in.

    Raises:
        UsageError: there is nothing at `path`.
        BaseModelError: what is there is not a UNet of a known naming, is damaged, or could not
            be fetched.
    """
    origin, path = str(path), located(path)
    tensors = open_tensors(path)
    shapes = {key: file.shape(stored) for key, (file, stored) in tensors.items()}
    placed = placements(shapes)
    spec = identified(spec_from_placements(placed, shapes, name=_name(path, origin), origin=origin))
    sources = {}
    for module, placement in placed.items():
        file, stored = tensors[placement.key]
        file.require_weight(stored)
        sources[module] = Source(file, replace(placement, key=stored))
    return BaseModel(spec, origin, sources)


def located(path: str | Path) -> Path:
    """The local file or folder of a base model, fetched from the hub where `path` is an id.

    Raises:
        UsageError: there is nothing at `path`.
        BaseModelError: it could not be fetched.
    """
    origin, path = str(path), Path(path)
    if path.exists():
        return path
    if is_hub_id(origin):
        return fetch_base_model(origin)
    raise UsageError(
        f"{path}: no such file or folder; expected a base model; check the path",
        code=Refusal.MISSING_FILE,
    )


def open_tensors(path: Path) -> dict[str, tuple[WeightFile, str]]:
    """Open file and key in it of every tensor at a local path, by its key with component.

    Raises:
        BaseModelError: no weights are there, or damaged ones.
    """
    return {key: place for part in model_parts(path) for key, place in _open(part).items()}


def _open(part: ModelPart) -> dict[str, tuple[WeightFile, str]]:
    """Open file and key in it of every tensor, by its key with component."""
    opened: dict[Path, WeightFile] = {}
    for path in part.files:
        if part.kind == "safetensors":
            opened[path] = TensorFile(path, error=BaseModelError)
        else:
            opened[path] = FlaxFile(OrbaxTree(path) if part.kind == "orbax" else MsgpackTree(path))
    taken = part.shards.taken({path: file.keys for path, file in opened.items()})
    return {
        key if key.startswith(_COMPONENTS) else part.component + key: (opened[path], key)
        for path, keys in taken.items()
        for key in keys
    }


def _name(path: Path, origin: str) -> str:
    """The folder's or file's name; of `<pipeline>/unet` and files in it, the pipeline's."""
    if not Path(origin).exists():  # an id of the hub, fetched to a folder named by a hash
        return Path(origin).name
    if path.is_file() and not path.name.startswith(UNET_STEMS):
        return path.stem
    folder = (path.parent if path.is_file() else path).resolve()
    return folder.parent.name if folder.name == "unet" else folder.name
