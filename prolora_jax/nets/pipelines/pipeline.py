"""From prompts to pictures: text encoders, UNet, sampler and VAE of one base model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prolora_jax.nets.sampling.scheduler import TableSampler
from prolora_jax.nets.text.clip import ClipTextEncoder
from prolora_jax.nets.text.prompts import Prompts, chunked, reweighted
from prolora_jax.nets.text.tokens import ClipTokenizer
from prolora_jax.nets.text.weighting import Weighting
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.unet.unet import UNet
from prolora_jax.nets.vae.tiles import decoded
from prolora_jax.nets.vae.vae import Vae

_log = logging.getLogger(__name__)

Tokens = Int[np.ndarray, "batch encoders length"]


class Told(NamedTuple):
    """What the UNet is told of prompts.

    Attributes:
        text: `(batch, length, width)`.
        pooled: for SDXL's family `(batch, width)`, else None.
    """

    text: Any
    pooled: Any


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The nets of a base model, without their parameters.

    Two that compute the same from the same parameters are equal, wherever they were loaded from: a
    program that was compiled for one serves the other.

    Attributes:
        unet: predicts.
        vae: makes pictures of latents, in float32: what half precision rounds is seen here.
        text_encoders: by component.
        tokenizers: by the component of the encoder they belong to.
        sampler: takes the steps (`sampling.samplers`).
        zeros_for_empty: whether no negative prompt is zeros, not an embedding.
        sample_size: height and width in latents that the base was trained on.
    """

    unet: UNet
    vae: Vae = field(repr=False)
    text_encoders: dict[str, ClipTextEncoder] = field(repr=False)
    tokenizers: dict[str, ClipTokenizer] = field(repr=False)
    sampler: TableSampler
    zeros_for_empty: bool
    sample_size: int

    @cached_property
    def computes(self) -> tuple[object, ...]:
        """All that a traced function may depend on; tokenizers have done their part before."""
        encoders = tuple(self.text_encoders.items())
        return self.unet, encoders, self.vae, self.sampler, self.zeros_for_empty, self.sample_size

    def __eq__(self, other: object) -> bool:
        """Whether both compute the same."""
        return isinstance(other, Pipeline) and self.computes == other.computes

    def __hash__(self) -> int:
        """Equal for those that are equal."""
        return hash(self.computes)

    @property
    def pixels_per_latent(self) -> int:
        """Height and width in pixels of one latent."""
        return self.vae.config.pixels_per_latent

    @property
    def pixels(self) -> int:
        """Height and width of the pictures that the base was trained on."""
        return self.sample_size * self.pixels_per_latent

    @property
    def is_sdxl_family(self) -> bool:
        """Whether the UNet is told sizes and a pooled text."""
        return self.unet.config.time_ids_dim is not None

    def tokens(self, prompts: list[str]) -> Tokens:
        """The prompts as numbers, `(batch, encoders, length)`; what is too long is cut off."""
        found = []
        for name, tokenizer in self.tokenizers.items():
            ids = [tokenizer.ids(prompt) for prompt in prompts]
            for prompt, own in zip(prompts, ids, strict=True):
                needed, most = len(own) + 2, tokenizer.length
                if needed > most:
                    _log.warning("%r: %d tokens, of which %s sees %d", prompt, needed, name, most)
            found.append([tokenizer.framed(own) for own in ids])
        return np.array(found, np.int32).swapaxes(0, 1)

    def prompts(self, texts: Sequence[str], *, weighting: Weighting, chunks: int = 1) -> Prompts:
        """The prompts as numbers and weights, in chunks: of `by_chunks`, none is cut off."""
        return chunked(self.tokenizers, texts, weighting=weighting, chunks=chunks)

    def embed(
        self,
        params: Params,
        tokens: Int[Array, "batch encoders *chunks length"],
        weights: Float[Array, "batch encoders *chunks length"] | None = None,
    ) -> Told:
        """What the UNet is told of the prompts.

        Args:
            params: of all components.
            tokens: of `tokens`, or of `prompts`: each chunk is embedded for itself.
            weights: of each token; the summary knows nothing of them.

        Returns:
            The embedded text, chunk behind chunk, and for SDXL's family the pooled text of the
            first chunk.
        """
        batch, length = len(tokens), tokens.shape[-1]

        def rows(array: Array, encoder: int) -> Array:
            return array[:, encoder].reshape(-1, length)

        said: dict[str, Any] = {
            name: encoder.apply({"params": params[name]}, rows(tokens, i))
            for i, (name, encoder) in enumerate(self.text_encoders.items())
        }
        # Of SDXL's family the last layer but one, before the norm.
        used = [out.hidden[-2] if self.is_sdxl_family else out.last for out in said.values()]
        if weights is not None:
            used = [reweighted(hidden, rows(weights, i)) for i, hidden in enumerate(used)]
        text = jnp.concatenate([h.reshape(batch, -1, h.shape[-1]) for h in used], axis=-1)
        if not self.is_sdxl_family:
            return Told(text, None)
        pooled = said["text_encoder_2"].pooled  # the summary is the second encoder's
        return Told(text, pooled.reshape(batch, -1, pooled.shape[-1])[:, 0])

    def decode(
        self,
        params: Params,
        latents: Float[Array, "batch channels height width"],
        tile: int | None = None,
    ) -> Float[Array, "batch pixels_down pixels_across 3"]:
        """Pictures with values from 0 to 1.

        Args:
            params: of all components.
            latents: as the UNet has them.
            tile: height and width in pixels of the tiles they are made in; None for one piece.
        """
        scaled = latents.astype(jnp.float32) / self.vae.config.scaling_factor
        pictures = decoded(self.vae, params["vae"], scaled, tile)
        return (pictures.transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1)
