"""Pipelines from disk: every part is read, checked against its configuration, and put together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prolora_jax.architectures.flax_trees import leaves
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.pipeline_files import PipelineFiles, pipeline_files
from prolora_jax.io.base_models.tokenizer_files import read_tokenizer
from prolora_jax.io.base_models.unet_files import read_unet_config
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.sampling.samplers import Sampler, Spacing, sampler_named
from prolora_jax.nets.sampling.scheduler import TableSampler
from prolora_jax.nets.text.clip import ClipTextEncoder
from prolora_jax.nets.text.config import ClipConfig, clip_config
from prolora_jax.nets.text.tokens import ClipTokenizer
from prolora_jax.nets.unet.config import from_diffusers
from prolora_jax.nets.unet.loading import Params, load_unet
from prolora_jax.nets.unet.unet import UNet
from prolora_jax.nets.vae.config import vae_config
from prolora_jax.nets.vae.vae import Vae

_USUAL_SAMPLE = 64


def load_pipeline(
    path: str | Path,
    *,
    parts: str | Path | None = None,
    sampler: Sampler = "auto",
    spacing: Spacing | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Pipeline, Params]:
    """A base model that makes pictures, straight from safetensors; without torch.

    Args:
        path: a diffusers pipeline's folder (safetensors or Flax msgpack), a hub id, or any UNet
            that `load_unet` takes.
        parts: the pipeline from which everything but the UNet is taken.
        sampler: `auto` for the one the pipeline names.
        spacing: where the sampler's steps are, if not where the pipeline has them: Lightning's and
            Hyper's adapters want `trailing`.
        dtype: of the parameters, and what is computed in, but for the VAE and the sampler.

    Returns:
        The pipeline, and its parameters by component.

    Raises:
        UsageError: there is nothing at a path, the extra `pipelines` is not installed, or the
            sampler does not ask for a spacing.
        BaseModelError: a part is missing, damaged, or of a kind that is not supported.
    """
    dtype = jnp.dtype(dtype)  # in one spelling: nets of one dtype are equal, and share programs
    files = pipeline_files(path, parts)
    given = files.unet_config
    raw = read_unet_config(files.unet)[0] if given is None else given
    made_sampler = _sampler(files, sampler, spacing)  # refused before gigabytes are read
    unet, unet_params = load_unet(files.unet, dtype=dtype, config=given)
    params: Params = {"unet": unet_params}
    encoders, tokenizers = {}, {}
    for name in _text_encoders(files, unet):
        encoders[name], params[name] = _text_encoder(files, name, dtype)
        tokenizers[name] = _tokenizer(files.tokenizer(name), encoders[name].config)
    lengths = {name: tokenizer.length for name, tokenizer in tokenizers.items()}
    if len(set(lengths.values())) > 1:
        raise BaseModelError(
            f"{files.folder}: found prompts of {lengths} tokens; expected one length for all, as "
            f"what encoders say is put side by side; correct model_max_length",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    vae, params["vae"] = _vae(files)
    is_sdxl = unet.config.time_ids_dim is not None
    pipeline = Pipeline(
        unet=unet,
        vae=vae,
        text_encoders=encoders,
        tokenizers=tokenizers,
        sampler=made_sampler,
        zeros_for_empty=bool(files.index.get("force_zeros_for_empty_prompt", is_sdxl)),
        sample_size=_sample_size(raw, str(files.unet)),
    )
    return pipeline, params


def require_drawable(path: str | Path, *, parts: str | Path | None = None) -> None:
    """Refuse a base model that does not draw, by its configurations: no weight is read.

    Args:
        path: as `load_pipeline`.
        parts: likewise.

    Raises:
        UsageError: there is nothing at a path, or the extra `pipelines` is not installed.
        BaseModelError: a part is missing, or of a kind that is not supported.
    """
    files = pipeline_files(path, parts)
    given = files.unet_config
    raw = read_unet_config(files.unet)[0] if given is None else given
    _sampler(files, "auto", None)
    for name in _text_encoders(files, UNet(from_diffusers(raw, origin=str(files.unet)))):
        origin = str(files.folder / name / "config.json")
        _tokenizer(files.tokenizer(name), clip_config(files.config(name), origin=origin))
    vae_config(files.config("vae"), origin=str(files.folder / "vae" / "config.json"))


def load_sampler(
    path: str | Path,
    *,
    parts: str | Path | None = None,
    sampler: Sampler = "auto",
    spacing: Spacing | None = None,
) -> TableSampler:
    """The sampler that `load_pipeline` would draw with; no weight is read.

    Args:
        path: as `load_pipeline`.
        parts: likewise.
        sampler: likewise.
        spacing: likewise.

    Raises:
        UsageError: there is nothing at a path, or the sampler does not ask for a spacing.
        BaseModelError: there is no sampler, or one of a kind that is not supported.
    """
    return _sampler(pipeline_files(path, parts), sampler, spacing)


def _sampler(files: PipelineFiles, sampler: Sampler, spacing: Spacing | None) -> TableSampler:
    config = files.config("scheduler", "scheduler_config.json")
    return sampler_named(sampler, config, origin=f"{files.folder}/scheduler", spacing=spacing)


def _text_encoders(files: PipelineFiles, unet: UNet) -> tuple[str, ...]:
    """The text encoders that this UNet needs; all must be there."""
    tensors, sizes = unet.config.tensors, unet.config.time_ids_dim
    needed = ("text_encoder",) if sizes is None else ("text_encoder", "text_encoder_2")
    found = files.text_encoders
    if found != needed:
        raise BaseModelError(
            f"{files.folder}: found {', '.join(found) or 'no text encoder'}; expected "
            f"{', '.join(needed)} for a UNet that looks at a text of width "
            f"{tensors.cross_attention_dim}; give the pipeline that the UNet was trained in "
            f"(SDXL's refiner, which has one encoder only, does not draw by itself)",
            code=Refusal.UNREADABLE_BASE,
        )
    return needed


def _text_encoder(files: PipelineFiles, name: str, dtype: Any) -> tuple[ClipTextEncoder, Params]:
    folder = files.folder / name
    config = clip_config(files.config(name), origin=str(folder / "config.json"))
    encoder = ClipTextEncoder(config, projected=name == "text_encoder_2")
    tree = files.parameters(name)
    if not encoder.projected:
        tree.pop("text_projection", None)
    _require_same(tree, encoder, jax.ShapeDtypeStruct((1, 1), jnp.int32), str(folder))
    return encoder.clone(dtype=dtype), _on_device(tree, dtype)


def _tokenizer(folder: Path, config: ClipConfig) -> ClipTokenizer:
    # Where no length is given: as many as there are places.
    tokenizer = ClipTokenizer(read_tokenizer(folder), config.max_position_embeddings)
    if tokenizer.size > config.vocab_size:
        raise BaseModelError(
            f"{folder}: found {tokenizer.size} tokens; expected at most {config.vocab_size}, which "
            f"the text encoder knows; give the tokenizer that belongs to it",
            code=Refusal.SHAPE_MISMATCH,
        )
    return tokenizer


def _sample_size(config: Mapping[str, Any], origin: str) -> int:
    found = config.get("sample_size") or _USUAL_SAMPLE
    if not isinstance(found, int):
        raise BaseModelError(
            f"{origin}: field sample_size is {found!r}; expected a whole number, height and width "
            f"in one; correct it in the UNet's configuration",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    return found


def _vae(files: PipelineFiles) -> tuple[Vae, Params]:
    folder = files.folder / "vae"
    vae = Vae(vae_config(files.config("vae"), origin=str(folder / "config.json")))
    tree, side = files.parameters("vae"), vae.config.pixels_per_latent
    picture = jax.ShapeDtypeStruct((1, vae.config.in_channels, side, side), jnp.float32)
    _require_same(tree, vae, picture, str(folder))
    return vae, _on_device(tree, jnp.float32)


def _require_same(tree: Params, net: nn.Module, given: jax.ShapeDtypeStruct, origin: str) -> None:
    """Refuse parameters that are not, one for one, those that a net makes for itself."""
    made: Any = jax.eval_shape(net.init, jax.random.key(0), given)
    found = {key: leaf.shape for key, leaf in leaves(tree)}
    want = {key: leaf.shape for key, leaf in leaves(made["params"])}
    for key in sorted(found.keys() | want.keys()):
        if found.get(key) != want.get(key):
            raise BaseModelError(
                f"{origin}: found {key} of shape {found.get(key)}; expected {want.get(key)}; the "
                f"weights are not those of config.json",
                code=Refusal.SHAPE_MISMATCH,
            )


def _on_device(tree: Params, dtype: Any) -> Params:
    # Copied in its final layout first: a device takes no strided views.
    return jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a), dtype), tree)
