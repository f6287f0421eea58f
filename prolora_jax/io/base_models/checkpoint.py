"""Base models on disk, in whatever container they come, read weight by weight."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.identify import identified
from prolora_jax.architectures.llm.heads import with_norms
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.placement import Placement, placements
from prolora_jax.architectures.recognition import spec_from_placements
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.whole_layers import whole_layers
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.gguf_model import open_gguf
from prolora_jax.io.base_models.gguf_tokens import GgufTokens, read_gguf_tokens
from prolora_jax.io.base_models.hub import fetch_base_model, is_hub_id
from prolora_jax.io.base_models.lm_facts import read_facts
from prolora_jax.io.base_models.model_files import NETWORKS, UNET_STEMS, ModelPart, model_parts
from prolora_jax.io.base_models.packed_weights import Tensors, unpacked
from prolora_jax.io.base_models.streamed_file import StreamedFile
from prolora_jax.io.base_models.tokenizer_json import read_tokenizer_json
from prolora_jax.io.base_models.weight_file import WeightFile
from prolora_jax.io.base_models.weight_source import JoinedSource, Source
from prolora_jax.io.containers.flax_checkpoint import FlaxFile
from prolora_jax.io.containers.msgpack_tree import MsgpackTree
from prolora_jax.io.containers.orbax_tree import OrbaxTree
from prolora_jax.io.containers.packed.fp8 import MOST_LOST
from prolora_jax.io.file_state import FileState
from prolora_jax.io.stores.known_weights import KnownWeights
from prolora_jax.layout import weight_to_matrix

_log = logging.getLogger(__name__)
_NETWORKS = ("unet.", *(f"{component}." for component in DIT_COMPONENTS))
_COMPONENTS = (*_NETWORKS, "text_encoder.", "text_encoder_2.")


@dataclass(frozen=True)
class BaseModel:
    """A base model whose weights stay on disk until they are asked for.

    Attributes:
        spec: its modules.
        location: the path it was loaded from.
        sources: where each module's weight is.
        known: fingerprints from earlier runs, which are believed of files that have not changed;
            a check believes none.
        place: local folder or file of the weights; None where none was told.
    """

    spec: BaseModelSpec
    location: str
    sources: Mapping[str, Source] = field(repr=False)
    known: KnownWeights | None = field(default=None, repr=False, compare=False)
    place: Path | None = field(default=None, repr=False, compare=False)
    _fingerprints: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _lost: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)

    def weight(self, path: str) -> np.ndarray:
        """The torch weight of a module, `(out, in)` or `(out, in, kh, kw)`, in its stored dtype.

        Raises:
            KeyError: there is no such module.
            BaseModelError: its dtype is not supported.
        """
        return self._source(path).read()

    def _source(self, path: str) -> Source | JoinedSource:
        layer = self.spec.layer_names.joined.get(path)
        if layer is not None:  # a layer of the authors', which is no module beside its parts
            return JoinedSource(tuple(self.sources[part.path] for part in layer.parts))
        if path not in self.sources:
            tail = path.rsplit(".", 1)[-1]
            near = [known for known in self.sources if known.endswith(tail)][:3]
            raise KeyError(
                f"{self.location}: no module {path!r}; nearest: {', '.join(near) or 'none'}"
            )
        return self.sources[path]

    def matrix(self, path: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """The weight as a float32 matrix `(out, in * kh * kw)`.

        Args:
            path: of the module.
            rows: the first one and the one behind the last; all when None. Of a weight that
                `is_streamed` no others are read.

        Raises:
            KeyError: there is no such module.
            BaseModelError: it holds a float64 number that float32 does not.
        """
        source = self._source(path)
        weight = weight_to_matrix(source.read() if rows is None else source.rows(*rows))
        with np.errstate(over="ignore"):  # looked at below
            matrix = weight.astype(np.float32, copy=False)
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

    def packing(self, path: str) -> str | None:
        """How a weight is packed, `nf4`; None where it has numbers of 16 bits or more.

        Raises:
            KeyError: there is no such module.
        """
        return self._source(path).packing

    @property
    def packings(self) -> Mapping[str, int]:
        """Number of weights by packing, for people; empty where none is packed."""
        return self.spec.packings

    @property
    def has_original_names(self) -> bool:
        """Whether the files name a layer of the UNet or transformers otherwise than diffusers."""
        return any(
            not source.placement.key.removesuffix(".weight").endswith(path.partition(".")[2])
            for path, source in self.sources.items()
            if path.startswith(_NETWORKS)
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of how the weights are packed, in sentences."""
        packed = (source.packed for source in self.sources.values())
        return tuple(sorted({one.note for one in packed if one is not None and one.note}))

    def tokenizer(self) -> bytes | GgufTokens | None:
        """What says which token a row is of; None where nothing does.

        Returns:
            The tokens in a GGUF file's header, or else the `tokenizer.json` beside the weights.

        Raises:
            BaseModelError: it cannot be read.
        """
        if self.place is None:
            return None
        found = [read_gguf_tokens(p.files[0]) for p in model_parts(self.place) if p.kind == "gguf"]
        own = next((tokens for tokens in found if tokens is not None), None)
        return read_tokenizer_json(self.place) if own is None else own

    def has_lost(self, path: str) -> bool:
        """Whether a cast to 8 bits without a scale has lost much of a weight.

        More than 1 % of its numbers are zero or subnormal: its spectrum is not that of the weight
        that was cast. A weight that was cast so is read once; the first such weight is logged.

        Raises:
            KeyError: there is no such module.
        """
        if path not in self._lost:
            share = self._source(path).lost() or 0.0
            if share > MOST_LOST and not any(self._lost.values()):
                _log.warning(
                    "%s: %s: %.0f %% of its 8-bit floats are zero or subnormal: it was cast "
                    "without a scale; a model of 16 bits, or one with scales, tells more",
                    *(self.location, path, 100 * share),
                )
            self._lost[path] = share > MOST_LOST
        return self._lost[path]

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
        by_file: dict[FileState | None, list[str]] = {}
        for path in dict.fromkeys(paths):
            if path not in self._fingerprints:
                by_file.setdefault(self._source(path).state, []).append(path)
        for state, missing in by_file.items():
            self._fingerprints.update(self._identified(state, missing))
        return {path: self._fingerprints[path] for path in paths}

    def _identified(self, state: FileState | None, paths: list[str]) -> dict[str, str]:
        """Fingerprints of weights in one file: known ones, and read ones, which are then known."""
        sources = {path: self._source(path) for path in paths}
        if self.known is None or state is None:
            return {path: source.digest() for path, source in sources.items()}
        known = self.known.of(state)
        began, read = time.time(), {}
        found = {}
        for path, source in sources.items():
            place = source.place
            if place not in known:
                read[place] = source.digest()
            found[path] = read[place] if place in read else known[place]
        if read:
            self.known.add(state, began, read)
        return found


def load_base_model(path: str | Path, known: KnownWeights | None = None) -> BaseModel:
    """Describe a base model and make its weights readable; no weight is read yet.

    Args:
        path: a single safetensors file in the naming of diffusers or of the model's authors; a
            diffusers folder (the pipeline's, with its text encoders, its `unet/` or its
            `transformer/`; one file or shards with an index);
            a Flax msgpack file or a folder with one; a folder that orbax wrote; a GGUF file; or,
            where no such path exists, the id of a model on the hub, `org/name`. Weights may be
            packed into 8 bits or fewer.
        known: fingerprints of earlier runs; without them every weight that is asked for is read.

    Returns:
        The model; its spec is named after the folder, file or id, and is the same whatever
        container the weights came in.

    Raises:
        UsageError: there is nothing at `path`.
        BaseModelError: what is there is no base model of a known naming, is damaged, has a module
            twice with different numbers, or could not be fetched.
    """
    origin, path = str(path), located(path)
    tensors = open_tensors(path)
    shapes = {key: file.shape(stored) for key, (file, stored) in tensors.items()}
    placed = placements(shapes, origin)
    spec = identified(spec_from_placements(placed, shapes, name=_name(path, origin), origin=origin))
    if any(module.startswith(LM) for module in spec.modules):
        facts = read_facts(path)
        spec = replace(spec, facts=None if facts is None else with_norms(facts, shapes))
    sources = {module: _source(tensors, placement) for module, placement in placed.items()}
    for module, placement in placed.items():
        for twin in placement.twins:
            _require_equal(origin, module, (placement, twin), tensors)
    packed = Counter(one.packing for one in sources.values() if one.packing is not None)
    spec = replace(spec, packings=dict(sorted(packed.items())))
    return BaseModel(spec, origin, sources, known, path)


def with_whole(source: BaseModel, target: BaseModel) -> tuple[BaseModel, BaseModel]:
    """Two base models with the authors' layers that both have as modules beside their parts."""
    specs = whole_layers(source.spec, target.spec)
    return replace(source, spec=specs[0]), replace(target, spec=specs[1])


def _source(tensors: Tensors, placement: Placement) -> Source:
    file, stored = tensors[placement.key]
    file.require_weight(stored)
    return Source(file, replace(placement, key=stored))


def _require_equal(
    origin: str, module: str, places: tuple[Placement, Placement], tensors: Tensors
) -> None:
    """Refuse a module that a file has under two names with different numbers."""
    digests = {_source(tensors, place).digest() for place in places}
    if len(digests) > 1:
        raise BaseModelError(
            f"{origin}: {module}: found it in {places[0].key} and, with other numbers, in "
            f"{places[1].key}; expected one of them; take the other out of the file",
            code=Refusal.DUPLICATE_MODULE,
        )


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

    Weights that are packed are there as their floats, which are made when they are read.

    Raises:
        BaseModelError: no weights are there, or damaged ones.
    """
    found = {key: place for part in model_parts(path) for key, place in _open(part).items()}
    return unpacked(found, str(path))


def _open(part: ModelPart) -> dict[str, tuple[WeightFile, str]]:
    """Open file and key in it of every tensor, by its key with component."""
    opened: dict[Path, WeightFile] = {}
    for path in part.files:
        if part.kind == "safetensors":
            opened[path] = StreamedFile(path)
        elif part.kind == "gguf":
            opened[path] = open_gguf(path)
        else:
            opened[path] = FlaxFile(OrbaxTree(path) if part.kind == "orbax" else MsgpackTree(path))
    taken = part.shards.taken({path: file.keys for path, file in opened.items()})
    return {
        key if key.startswith(_COMPONENTS) else part.component + key: (opened[path], key)
        for path, keys in taken.items()
        for key in keys
    }


def _name(path: Path, origin: str) -> str:
    """The folder's or file's name; of a pipeline's network and files in it, the pipeline's."""
    if not Path(origin).exists():  # an id of the hub, fetched to a folder named by a hash
        return Path(origin).name
    if path.is_file() and not path.name.startswith(UNET_STEMS):
        return path.stem
    folder = (path.parent if path.is_file() else path).resolve()
    return folder.parent.name if folder.name in NETWORKS else folder.name
