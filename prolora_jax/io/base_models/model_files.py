"""Which files hold a base model's weights: diffusers', transformers', Flax' or orbax' ones."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prolora_jax.architectures.clip.table import COMPONENTS
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.shards import Shards, read_index
from prolora_jax.io.containers.orbax_tree import orbax_item, passed_over
from prolora_jax.io.containers.packed.gguf_header import MAGIC
from prolora_jax.io.guarded import is_regular, open_regular

_log = logging.getLogger(__name__)

_UNET_STEM = "diffusion_pytorch_model"
_UNET_FLAX = "diffusion_flax_model.msgpack"
UNET_STEMS = (_UNET_STEM, _UNET_FLAX.split(".")[0])
"""What the usual names of a UNet's files begin with: they say nothing of the model."""

NETWORKS = ("unet", *DIT_COMPONENTS)
"""Folders of a pipeline with the network that adapters are trained on."""

_TEXT_STEM, _TEXT_FLAX = "model", "flax_model.msgpack"


@dataclass(frozen=True)
class ModelPart:
    """Files that hold one component, or several.

    Attributes:
        component: what stands before a key that names no component: `unet.`, or nothing.
        kind: how to read the files: `safetensors`, `msgpack`, `orbax` or `gguf`.
        shards: the files, and which tensor is in which; of orbax the folder.
    """

    component: str
    kind: str
    shards: Shards

    @property
    def files(self) -> tuple[Path, ...]:
        """The files; of orbax the folder."""
        return self.shards.files


def model_parts(path: Path) -> list[ModelPart]:
    """The files of a base model: the network's first, then those of text encoders beside it.

    In a folder without a UNet or diffusion transformer, transformers' own: a language model's.

    Args:
        path: a file; a pipeline's folder, its `unet/` or `transformer/`, a language model's, or
            one of orbax.

    Returns:
        At least one part.

    Raises:
        BaseModelError: no weights are there, or none that may be opened.
    """
    if not path.is_dir():  # also a pipe, which its reader refuses
        return [ModelPart("", _kind(path), Shards((path,)))]
    networks = [name for name in NETWORKS if (path / name).is_dir()]
    if networks:
        # Two of them, where a model has an expert for each half of the noise: both or neither.
        return [*(_network(path, name) for name in networks), *_text_encoders(path)]
    alone = _component(path, "", _UNET_STEM, _UNET_FLAX)
    if alone is not None:
        return [alone]
    model = _safetensors(path, _TEXT_STEM)
    if model is not None:
        return [ModelPart("", "safetensors", model)]
    ggufs = sorted(file for file in path.glob("*.gguf") if is_regular(file))
    if len(ggufs) == 1:
        return [ModelPart("", "gguf", Shards((ggufs[0],)))]
    code, message = _no_weights(path)
    raise BaseModelError(message, code=code)


def _network(pipeline: Path, name: str) -> ModelPart:
    folder = pipeline / name
    part = _component(folder, f"{name}.", _UNET_STEM, _UNET_FLAX)
    if part is not None:
        return part
    code, message = _no_weights(folder)
    raise BaseModelError(message, code=code)


def component_part(pipeline: Path, name: str) -> ModelPart | None:
    """The files of a text encoder or of the VAE, keys as they are; None where there are none.

    Args:
        pipeline: a pipeline's folder.
        name: `text_encoder`, `text_encoder_2` or `vae`.
    """
    stem, flax = (_UNET_STEM, _UNET_FLAX) if name == "vae" else (_TEXT_STEM, _TEXT_FLAX)
    folder = pipeline / name
    return _component(folder, "", stem, flax) if folder.is_dir() else None


def _kind(path: Path) -> str:
    """What kind of file a single one is: by its name, and by what a GGUF file begins with."""
    if path.suffix == ".msgpack":
        return "msgpack"
    if not is_regular(path):
        return "safetensors"  # whose reader says what it is instead
    with open_regular(path) as file:
        return "gguf" if file.read(len(MAGIC)) == MAGIC else "safetensors"


def _text_encoders(pipeline: Path) -> Iterator[ModelPart]:
    for name in COMPONENTS:
        folder = pipeline / name
        part = _component(folder, f"{name}.", _TEXT_STEM, _TEXT_FLAX) if folder.is_dir() else None
        if part is not None:  # a UNet alone is a base model, too
            yield part


def _component(folder: Path, component: str, stem: str, flax: str) -> ModelPart | None:
    shards = _safetensors(folder, stem)
    if shards is not None:
        return ModelPart(component, "safetensors", shards)
    if is_regular(folder / flax):
        return ModelPart(component, "msgpack", Shards((folder / flax,)))
    item = orbax_item(folder)
    left = None if item is None else passed_over(folder, item)
    if left is not None:
        _log.warning("%s: %s", folder, left)
    return ModelPart(component, "orbax", Shards((item,))) if item is not None else None


def _safetensors(folder: Path, stem: str) -> Shards | None:
    # Full precision first; a variant (fp16, bf16) only where nothing else is there. Averaged
    # training weights (non_ema) are another model, never a stand-in.
    index = _first(folder, f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.*.json")
    single = _first(folder, f"{stem}.safetensors", f"{stem}.*.safetensors")
    if single is not None and (index is None or single.name == f"{stem}.safetensors"):
        return Shards((single,))
    return read_index(index) if index is not None else None


def _first(folder: Path, exact: str, variants: str) -> Path | None:
    if is_regular(folder / exact):
        return folder / exact
    found = sorted(p for p in folder.glob(variants) if "non_ema" not in p.name)
    return found[0] if found else None


def _no_weights(folder: Path) -> tuple[Refusal, str]:
    """What is in a folder instead of a network's weights, and what to do."""
    expected = f"expected {_UNET_STEM}.safetensors, or its index, in {folder}"
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return Refusal.UNREADABLE_BASE, (
            f"{folder}: found {len(ggufs)} GGUF files; {expected}, or one GGUF file; name one of "
            f"them, {ggufs[0].name} or another"
        )
    names = (f"{_UNET_STEM}*.bin", "pytorch_model*.bin")
    pickles = sorted(file for name in names for file in folder.glob(name))
    if pickles and not pickles[0].name.startswith(_UNET_STEM):
        expected = f"expected {_TEXT_STEM}.safetensors, or its index, in {folder}"
    if pickles:
        return Refusal.PICKLE, (
            f"{folder}: found only {pickles[0].name}, a pickle, which may run code when opened; "
            f"{expected}; convert it to safetensors in a sandbox"
        )
    held = sorted(entry.name for entry in folder.iterdir())
    return Refusal.UNREADABLE_BASE, (
        f"{folder}: found {', '.join(held[:5]) or 'an empty folder'}; {expected}; give a "
        f"diffusers pipeline's folder, its unet/ or transformer/ folder, a Flax or orbax one, or a "
        f"language model's with {_TEXT_STEM}.safetensors"
    )
