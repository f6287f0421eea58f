"""Base models on disk, in whatever container they come, read weight by weight."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prolora_jax.architectures.identify import identified
from prolora_jax.architectures.placement import placements
from prolora_jax.architectures.recognition import spec_from_placements
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.hub import fetch_base_model, is_hub_id
from prolora_jax.io.base_models.model_files import UNET_STEMS, ModelPart, model_parts
from prolora_jax.io.base_models.streamed_file import StreamedFile
from prolora_jax.io.base_models.weight_source import Source, WeightFile
from prolora_jax.io.containers.flax_checkpoint import FlaxFile
from prolora_jax.io.containers.msgpack_tree import MsgpackTree
from prolora_jax.io.containers.orbax_tree import OrbaxTree
from prolora_jax.io.stores.known_weights import KnownWeights
from prolora_jax.layout import weight_to_matrix

_COMPONENTS = ("unet.", "text_encoder.", "text_encoder_2.")


@dataclass(frozen=True)
class BaseModel:
    """A base model whose weights stay on disk until they are asked for.

    Attributes:
        spec: its modules.
        location: the path it was loaded from.
        sources: where each module's weight is.
        known: fingerprints from earlier runs, which are believed of files that have not changed;
            a check believes none.
    """

    spec: BaseModelSpec
    location: str
    sources: Mapping[str, Source] = field(repr=False)
    known: KnownWeights | None = field(default=None, repr=False, compare=False)
    _fingerprints: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def weight(self, path: str) -> np.ndarray:
        """The torch weight of a module, `(out, in)` or `(out, in, kh, kw)`, in its stored dtype.

        Raises:
            KeyError: there is no such module.
            BaseModelError: its dtype is not supported.
        """
        return self._source(path).read()

    def _source(self, path: str) -> Source:
        if path not in self.sources:
            tail = path.rsplit(".", 1)[-1]
            near = [known for known in self.sources if known.endswith(tail)][:3]
            raise KeyError(
                f"{self.location}: no module {path!r}; nearest: {', '.join(near) or 'none'}"
            )
        return self.sources[path]

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

    def bias(self, path: str) -> np.ndarray | None:
        """The bias of a module's layer, in its stored dtype; None where the layer has none.

        Raises:
            KeyError: there is no such module.
        """
        return self._source(path).bias()

    def numbers(self, path: str, step: int) -> Iterator[np.ndarray]:
        """The weight's numbers, flat and row by row, `step` at a time.

        Args:
            path: of the module.
            step: how many. Of a weight that `is_streamed`, no more than these are in memory.

        Yields:
            The next numbers, which float32 can hold; the last ones may be fewer.

        Raises:
            KeyError: there is no such module.
            BaseModelError: as `matrix`.
        """
        source = self._source(path)
        if source.is_wide:
            flat = self.matrix(path).reshape(-1)
            yield from (flat[first : first + step] for first in range(0, flat.size, step))
        else:
            yield from source.numbers(step)

    def is_streamed(self, path: str) -> bool:
        """Whether a weight can be read in parts."""
        source = self._source(path)
        return source.is_streamed and not source.is_wide

    def fingerprint(self, path: str) -> str:
        """32 hex digits that depend on the weight's dtype, shape and bytes, and on nothing else.

        The weight is read once; changes of the file after that are not seen.
        """
        if path not in self._fingerprints:
            self.fingerprints([path])
        return self._fingerprints[path]

    def fingerprints(self, paths: Iterable[str]) -> dict[str, str]:
        """Fingerprints by path: of many at once, what is known of a file is looked up once.

        Args:
            paths: of modules.

        Raises:
            KeyError: there is no such module.
            BaseModelError: a dtype is not supported.
        """
        paths = list(paths)
        by_file: dict[int, list[str]] = {}
        for path in dict.fromkeys(paths):
            if path not in self._fingerprints:
                by_file.setdefault(id(self._source(path).file), []).append(path)
        for missing in by_file.values():
            self._fingerprints.update(self._identified(missing))
        return {path: self._fingerprints[path] for path in paths}

    def _identified(self, paths: list[str]) -> dict[str, str]:
        """Fingerprints of weights in one file: known ones, and read ones, which are then known."""
        sources = {path: self._source(path) for path in paths}
        file = sources[paths[0]].file
        if self.known is None or not isinstance(file, StreamedFile):
            return {path: source.digest() for path, source in sources.items()}
        known = self.known.of(file.state)
        began, read = time.time(), {}
        found = {}
        for path, source in sources.items():
            place = source.place
            if place not in known:
                read[place] = source.digest()
            found[path] = read[place] if place in read else known[place]
        if read:
            self.known.add(file.state, began, read)
        return found


def load_base_model(path: str | Path, known: KnownWeights | None = None) -> BaseModel:
    """Describe a base model and make its weights readable; no weight is read yet.

    Args:
        path: a single safetensors file in diffusers or LDM naming; a diffusers folder (the
            pipeline's, with its text encoders, or its `unet/`; one file or shards with an index);
            a Flax msgpack file or a folder with one; a folder that orbax wrote; or, where no such
            path exists, the id of a model on the hub, `org/name`.
        known: fingerprints of earlier runs; without them every weight that is asked for is read.

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
    return BaseModel(spec, origin, sources, known)


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
            opened[path] = StreamedFile(path)
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
