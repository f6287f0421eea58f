"""From prompts to pictures: text encoders, UNet, sampler and VAE of one base model."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prolora_jax.nets.pipelines.diffusers_flax import theirs
from prolora_jax.nets.sampling.scheduler import TableSampler
from prolora_jax.nets.unet.loading import Params
from prolora_jax.nets.unet.unet import UNet

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
        vae: diffusers' `FlaxAutoencoderKL`, float32: what half precision rounds is seen here.
        text_encoders: transformers' Flax classes, by component.
        tokenizers: by the component of the encoder they belong to.
        sampler: takes the steps (`sampling.samplers`).
        zeros_for_empty: whether no negative prompt is zeros, not an embedding.
        sample_size: height and width in latents that the base was trained on.
    """

    unet: UNet
    vae: Any = field(repr=False)
    text_encoders: dict[str, Any] = field(repr=False)
    tokenizers: dict[str, Any] = field(repr=False)
    sampler: TableSampler
    zeros_for_empty: bool
    sample_size: int

    @cached_property
    def computes(self) -> tuple[object, ...]:
        """All that a traced function may depend on; tokenizers have done their part before."""
        encoders = tuple(
            (name, type(net).__name__, str(net.dtype), net.config.to_json_string())
            for name, net in self.text_encoders.items()
        )
        vae = type(self.vae).__name__, repr(self.vae.config)
        return self.unet, encoders, vae, self.sampler, self.zeros_for_empty, self.sample_size

    def __eq__(self, other: object) -> bool:
        """Whether both compute the same."""
        return isinstance(other, Pipeline) and self.computes == other.computes

    def __hash__(self) -> int:
        """Equal for those that are equal."""
        return hash(self.computes)

    @property
    def pixels_per_latent(self) -> int:
        """Height and width in pixels of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

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
        for prompt in prompts:
            for name, tokenizer in self.tokenizers.items():
                with theirs():
                    found, most = len(tokenizer(prompt).input_ids), tokenizer.model_max_length
                if found > most:
                    _log.warning("%r: %d tokens, of which %s sees %d", prompt, found, name, most)
        ids = [
            tokenizer(
                prompts,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="np",
            ).input_ids
            for tokenizer in self.tokenizers.values()
        ]
        return np.stack(ids, axis=1).astype(np.int32)

    def embed(self, params: Params, tokens: Int[Array, "batch encoders length"]) -> Told:
        """What the UNet is told of the prompts.

        Args:
            params: of all components.
            tokens: of `tokens`.

        Returns:
            The embedded text, and for SDXL's family the pooled text.
        """
        told = {
            name: encoder(
                tokens[:, i], params=params[name], output_hidden_states=self.is_sdxl_family
            )
            for i, (name, encoder) in enumerate(self.text_encoders.items())
        }
        if not self.is_sdxl_family:
            return Told(told["text_encoder"].last_hidden_state, None)
        # The last layer but one, before the norm; the summary is the second encoder's.
        hidden = [out.hidden_states[-2] for out in told.values()]
        return Told(jnp.concatenate(hidden, axis=-1), told["text_encoder_2"].text_embeds)

    def decode(
        self, params: Params, latents: Float[Array, "batch channels height width"]
    ) -> Float[Array, "batch pixels_down pixels_across 3"]:
        """Pictures with values from 0 to 1."""
        # Channels last: of latents as wide as they have channels Flax's VAE would not know which.
        scaled = latents.astype(jnp.float32).transpose(0, 2, 3, 1) / self.vae.config.scaling_factor
        with theirs():
            found = self.vae.apply({"params": params["vae"]}, scaled, method=self.vae.decode)
        decoded = found.sample
        return (decoded.transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1)
