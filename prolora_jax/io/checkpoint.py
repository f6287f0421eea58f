"""Base models on disk: a diffusers folder or a single safetensors file, read weight by weight."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prolora_jax.architectures.header import spec_from_placements
from prolora_jax.architectures.known import identified
from prolora_jax.architectures.placement import Placement, placements
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.tensors import TensorFile
from prolora_jax.layout import kernel_to_weight, weight_to_matrix

_STEM = "diffusion_pytorch_model"
_FINGERPRINT_LENGTH = 32


@dataclass(frozen=True)
class Source:
    """Where one weight is: an open file, and the place in it."""

    file: TensorFile
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
        """The weight as a float32 matrix `(out, in * kh * kw)`."""
        return weight_to_matrix(self.weight(path)).astype(np.float32)

    def fingerprint(self, path: str) -> str:
        """32 hex digits that depend on the weight's dtype, shape and bytes, and on nothing else."""
        weight = self.weight(path)
        digest = hashlib.sha256(f"{weight.dtype.name} {weight.shape} ".encode())
        # As bytes first: NumPy hands out no buffer of bfloat16.
        digest.update(np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:_FINGERPRINT_LENGTH]


def load_base_model(path: str | Path) -> BaseModel:
    """Describe a base model and make its weights readable; no weight is read yet.

    Args:
        path: a diffusers folder (the pipeline's or its `unet/`; one file or shards with an
            index), or a single safetensors file in diffusers naming.

    Returns:
        The model; its spec is named after the folder or file.

    Raises:
        UsageError: there is nothing at `path`.
        BaseModelError: what is there is not a UNet in diffusers naming, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or folder; expected a base model; check the path",
            code=Refusal.MISSING_FILE,
        )
    files = [TensorFile(file, error=BaseModelError) for file in _weight_files(path)]
    files_of = {key: file for file in files for key in file.keys}
    shapes = {key: file.shape(key) for key, file in files_of.items()}
    placed = placements(shapes)
    spec = identified(spec_from_placements(placed, shapes, name=_name(path), origin=str(path)))
    sources = {module: Source(files_of[p.key], p) for module, p in placed.items()}
    for source in sources.values():
        source.file.require_weight(source.placement.key)
    return BaseModel(spec, str(path), sources)


def _name(path: Path) -> str:
    """The folder's or file's name; of `<pipeline>/unet` and files in it, the pipeline's."""
    if path.is_file() and not path.stem.startswith(_STEM):
        return path.stem
    folder = (path.parent if path.is_file() else path).resolve()
    return folder.parent.name if folder.name == "unet" else folder.name


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "unet" if (path / "unet").is_dir() else path
    # Full precision first; a variant (fp16, bf16) only where nothing else is there. Averaged
    # training weights (non_ema) are another model, never a stand-in.
    index = _first(folder, f"{_STEM}.safetensors.index.json", f"{_STEM}.safetensors.index.*.json")
    single = _first(folder, f"{_STEM}.safetensors", f"{_STEM}.*.safetensors")
    if single is not None and (index is None or single.name == f"{_STEM}.safetensors"):
        return [single]
    if index is not None:
        return _shards(index)
    raise _no_weights(path, folder)


def _first(folder: Path, exact: str, variants: str) -> Path | None:
    if (folder / exact).is_file():
        return folder / exact
    found = sorted(p for p in folder.glob(variants) if "non_ema" not in p.name)
    return found[0] if found else None


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        shards = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise BaseModelError(
            f"{index}: found no readable weight_map; expected the index of a sharded "
            f"checkpoint; fetch it again",
            code=Refusal.UNREADABLE_BASE,
        ) from failure
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise BaseModelError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}; "
            f"fetch them",
            code=Refusal.MISSING_FILE,
        )
    return shards


def _no_weights(path: Path, folder: Path) -> BaseModelError:
    expected = f"expected {_STEM}.safetensors, or its index, in {folder}"
    pickles = sorted(folder.glob(f"{_STEM}*.bin"))
    if pickles:
        return BaseModelError(
            f"{path}: found only {pickles[0].name}, a pickle, which may run code when opened; "
            f"{expected}; convert it to safetensors in a sandbox",
            code=Refusal.PICKLE,
        )
    names = sorted(entry.name for entry in folder.iterdir())
    return BaseModelError(
        f"{path}: found {', '.join(names[:5]) or 'an empty folder'}; {expected}; give a "
        f"diffusers pipeline's folder or its unet/ folder",
        code=Refusal.UNREADABLE_BASE,
    )
