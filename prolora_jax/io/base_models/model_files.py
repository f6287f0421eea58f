"""Which files hold a base model's weights: in a folder of diffusers, of Flax, or of orbax."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prolora_jax.architectures.clip.table import COMPONENTS
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.orbax_tree import orbax_item

_UNET_STEM = "diffusion_pytorch_model"
_UNET_FLAX = "diffusion_flax_model.msgpack"
UNET_STEMS = (_UNET_STEM, _UNET_FLAX.split(".")[0])
"""What the usual names of a UNet's files begin with: they say nothing of the model."""

_TEXT_STEM, _TEXT_FLAX = "model", "flax_model.msgpack"


@dataclass(frozen=True)
class ModelPart:
    """Files that hold one component, or several.

    Attributes:
        component: what stands before a key that names no component: `unet.`, or nothing.
        kind: how to read the files.
        files: the files; of orbax the folder.
    """

    component: str
    kind: str
    files: tuple[Path, ...]


def model_parts(path: Path) -> list[ModelPart]:
    """The files of a base model: the UNet's first, then those of text encoders beside it.

    Args:
        path: a file; a pipeline's folder, its `unet/`, or a folder of orbax.

    Returns:
        At least one part.

    Raises:
        BaseModelError: no weights are there, or none that may be opened.
    """
    if path.is_file():
        kind = "msgpack" if path.suffix == ".msgpack" else "safetensors"
        return [ModelPart("", kind, (path,))]
    is_pipeline = (path / "unet").is_dir()
    folder = path / "unet" if is_pipeline else path
    unet = _component(folder, "unet.", _UNET_STEM, _UNET_FLAX)
    if unet is None:
        code, message = _no_weights(path, folder)
        raise BaseModelError(message, code=code)
    return [unet, *(_text_encoders(path) if is_pipeline else ())]


def component_part(pipeline: Path, name: str) -> ModelPart | None:
    """The files of a text encoder or of the VAE, keys as they are; None where there are none.

    Args:
        pipeline: a pipeline's folder.
        name: `text_encoder`, `text_encoder_2` or `vae`.
    """
    stem, flax = (_UNET_STEM, _UNET_FLAX) if name == "vae" else (_TEXT_STEM, _TEXT_FLAX)
    folder = pipeline / name
    return _component(folder, "", stem, flax) if folder.is_dir() else None


def _text_encoders(pipeline: Path) -> Iterator[ModelPart]:
    for name in COMPONENTS:
        folder = pipeline / name
        part = _component(folder, f"{name}.", _TEXT_STEM, _TEXT_FLAX) if folder.is_dir() else None
        if part is not None:  # a UNet alone is a base model, too
            yield part


def _component(folder: Path, component: str, stem: str, flax: str) -> ModelPart | None:
    files = _safetensors(folder, stem)
    if files is not None:
        return ModelPart(component, "safetensors", files)
    if (folder / flax).is_file():
        return ModelPart(component, "msgpack", (folder / flax,))
    item = orbax_item(folder)
    return ModelPart(component, "orbax", (item,)) if item is not None else None


def _safetensors(folder: Path, stem: str) -> tuple[Path, ...] | None:
    # Full precision first; a variant (fp16, bf16) only where nothing else is there. Averaged
    # training weights (non_ema) are another model, never a stand-in.
    index = _first(folder, f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.*.json")
    single = _first(folder, f"{stem}.safetensors", f"{stem}.*.safetensors")
    if single is not None and (index is None or single.name == f"{stem}.safetensors"):
        return (single,)
    return _shards(index) if index is not None else None


def _first(folder: Path, exact: str, variants: str) -> Path | None:
    if (folder / exact).is_file():
        return folder / exact
    found = sorted(p for p in folder.glob(variants) if "non_ema" not in p.name)
    return found[0] if found else None


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        shards = tuple(index.parent / name for name in names)
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


def _no_weights(path: Path, folder: Path) -> tuple[Refusal, str]:
    """What is in a folder instead of a UNet's weights, and what to do."""
    expected = f"expected {_UNET_STEM}.safetensors, or its index, in {folder}"
    pickles = sorted(folder.glob(f"{_UNET_STEM}*.bin"))
    if pickles:
        return Refusal.PICKLE, (
            f"{path}: found only {pickles[0].name}, a pickle, which may run code when opened; "
            f"{expected}; convert it to safetensors in a sandbox"
        )
    names = sorted(entry.name for entry in folder.iterdir())
    return Refusal.UNREADABLE_BASE, (
        f"{path}: found {', '.join(names[:5]) or 'an empty folder'}; {expected}; give a "
        f"diffusers pipeline's folder or its unet/ folder, or a Flax or orbax one"
    )
