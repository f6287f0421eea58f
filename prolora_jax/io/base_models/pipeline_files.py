"""A text-to-image pipeline on disk, as diffusers keeps it: its parts and their configurations."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from prolora_jax.architectures.flax_parts import text_encoder_to_flax, vae_to_flax
from prolora_jax.architectures.flax_trees import Tree, nested
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import located
from prolora_jax.io.base_models.hub import fetch_base_model, is_hub_id
from prolora_jax.io.base_models.model_files import component_part
from prolora_jax.io.base_models.tokenizer_files import is_whole
from prolora_jax.io.base_models.unet_files import read_unet_config
from prolora_jax.io.containers.msgpack_tree import MsgpackTree
from prolora_jax.io.containers.orbax_tree import OrbaxTree
from prolora_jax.io.containers.tensors import read_tensors
from prolora_jax.io.documents import BadDocument, read_json_document
from prolora_jax.io.guarded import open_regular

_log = logging.getLogger(__name__)

_VAE = "vae"
_CONFIG = "config.json"


@dataclass(frozen=True)
class PipelineFiles:
    """Where the parts of a pipeline are.

    Attributes:
        unet: what `load_unet` takes.
        folder: the pipeline's folder, with the VAE, text encoders, tokenizers and scheduler.
    """

    unet: Path
    folder: Path

    def config(self, part: str, name: str = _CONFIG) -> dict[str, Any]:
        """The configuration of a part.

        Args:
            part: its folder.
            name: the file in it.

        Returns:
            The JSON object in the file.

        Raises:
            BaseModelError: there is none.
        """
        file = self.folder / part / name
        try:
            found = read_json_document(file)
        except BadDocument:
            found = None
        if not isinstance(found, dict):
            owner = f"pipeline's {part}" if part else "pipeline"
            raise BaseModelError(
                f"{file}: found no JSON object; expected the configuration of the {owner}; fetch "
                f"the whole pipeline",
                code=Refusal.MISSING_FILE,
            )
        return found

    @property
    def index(self) -> dict[str, Any]:
        """`model_index.json`, which says how the pipeline is put together; empty without one."""
        return self.config("", "model_index.json") if self._has("model_index.json") else {}

    @property
    def unet_config(self) -> dict[str, Any] | None:
        """The UNet's configuration where none stands beside its own weights: the pipeline's."""
        beside = self.unet if self.unet.is_dir() else self.unet.parent
        if (beside / _CONFIG).is_file() or (beside / "unet" / _CONFIG).is_file():
            return None
        return self.config("unet")

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The text encoders there are, `text_encoder` and `text_encoder_2`."""
        return tuple(n for n in ("text_encoder", "text_encoder_2") if self._has(n))

    def tokenizer(self, encoder: str) -> Path:
        """Folder of the tokenizer that belongs to a text encoder.

        Raises:
            BaseModelError: there is none.
        """
        folder = self.folder / encoder.replace("text_encoder", "tokenizer")
        if is_whole(folder):
            return folder
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise BaseModelError(
                    f"{folder / name}: no such file; expected the tokenizer of {encoder}; fetch "
                    f"the whole pipeline",
                    code=Refusal.MISSING_FILE,
                )
        return folder

    def parameters(self, part: str) -> Tree:
        """The parameters of the VAE or a text encoder, in the names of their Flax classes.

        Args:
            part: `vae`, `text_encoder` or `text_encoder_2`.

        Returns:
            Nested dictionaries of NumPy arrays in Flax layout and their stored dtype.

        Raises:
            BaseModelError: there are none, or damaged ones.
        """
        found = component_part(self.folder, part)
        if found is None:
            raise BaseModelError(
                f"{self.folder / part}: found no weights; expected them as safetensors or Flax "
                f"msgpack; fetch the whole pipeline, or convert what is there",
                code=Refusal.MISSING_FILE,
            )
        if found.kind == "safetensors":
            held = {file: read_tensors(file, error=BaseModelError)[0] for file in found.files}
            taken = found.shards.taken(held)
            tensors = {key: held[file][key] for file, keys in taken.items() for key in keys}
            return vae_to_flax(tensors) if part == _VAE else text_encoder_to_flax(tensors)
        file = found.files[0]
        tree = OrbaxTree(file) if found.kind == "orbax" else MsgpackTree(file)
        return nested({"/".join(place): tree.read(place) for place in tree.leaves})

    def digest(self, *, weights: bool) -> str:
        """A digest of all that latents depend on beside the UNet's weights, wherever it lies.

        Schedulers, tokenizers and configurations; the VAE's weights make no latents.

        Args:
            weights: whether text encoders' weights are read for it, too: gigabytes, which nobody
                needs where these are identified otherwise.

        Raises:
            BaseModelError: the UNet has no configuration.
            OSError: a file cannot be read.
        """
        given = self.unet_config
        config = read_unet_config(self.unet)[0] if given is None else given
        digest = sha256(json.dumps(config, sort_keys=True).encode())
        for file in self._told(weights=weights):
            digest.update(f"{file.relative_to(self.folder)}\0".encode(errors="surrogateescape"))
            with open_regular(file) as opened:
                digest.update(file_digest(opened, sha256).digest())
        return digest.hexdigest()

    def _told(self, *, weights: bool) -> Iterator[Path]:
        """Files beside the UNet's, in their order."""
        configs = ("model_index.json", *(f"{p}/{_CONFIG}" for p in (_VAE, *self.text_encoders)))
        yield from (self.folder / name for name in configs if self._has(name))
        folders = ("scheduler", "tokenizer", "tokenizer_2")
        told = [self.folder / name for name in folders]
        for name in self.text_encoders if weights else ():
            part = component_part(self.folder, name)
            told += [] if part is None else part.files
        for place in told:
            yield from sorted(p for p in (place, *place.rglob("*")) if p.is_file())

    def _has(self, name: str) -> bool:
        return (self.folder / name).exists()


def pipeline_files(path: str | Path, parts: str | Path | None = None) -> PipelineFiles:
    """Where the parts of a pipeline are.

    Args:
        path: a pipeline's folder, or a UNet in any container that `load_unet` takes, or a hub id.
        parts: a pipeline's folder, or a hub id, from which everything but the UNet is taken.

    Returns:
        The places; that weights are there is not looked at.

    Raises:
        UsageError: there is nothing at a path.
        BaseModelError: there is only a UNet, and no `parts` are given; or the hub refuses.
    """
    unet = _located(path) if parts is None else located(path)
    folder = unet if parts is None else _located(parts)
    if not (folder / _VAE).is_dir():
        found = "a single file" if folder.is_file() else f"no {_VAE}/ folder"
        raise BaseModelError(
            f"{folder}: found {found}; expected a diffusers pipeline's folder with its VAE, text "
            f"encoders, tokenizers and scheduler; give one, or beside a UNet alone give one that "
            f"these are taken from (--parts; of `prolora refine` --source-parts, --target-parts)",
            code=Refusal.UNREADABLE_BASE,
        )
    if unet.is_file():
        _log.warning("%s: only its UNet is used; everything else is from %s", unet, folder)
    return PipelineFiles(unet, folder)


def _located(path: str | Path) -> Path:
    if not Path(path).exists() and is_hub_id(str(path)):
        return fetch_base_model(str(path), for_pictures=True)
    return located(path)
