"""The VAE of the Stable Diffusion family, in Flax, with parameters named as diffusers' Flax does.

Latents are 1 / 8 of a picture's height and width (arXiv 2112.10752, section 3.1).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.unet.layers import Style
from prolora_jax.nets.unet.resnet import NewPicture, Picture
from prolora_jax.nets.vae.config import VaeConfig
from prolora_jax.nets.vae.parts import VaeBlock, VaeMiddle

Pictures = Float[Array, "batch colours height width"]
Latents = Float[Array, "batch channels rows columns"]
Moments = Float[Array, "batch both rows columns"]

_EPS = 1e-6
_LOWEST, _HIGHEST = -30.0, 20.0
"""Of the logarithm of a variance, as diffusers has it."""


class Vae(nn.Module):
    """Pictures with values from -1 to 1 as latents, and back. Channels are in front, as in torch.

    Attributes:
        config: what to compute.
        dtype: what to compute in; norms and softmax are in float32 whatever it is.
        param_dtype: what `init` makes parameters in.
    """

    config: VaeConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        """Name the four parts."""
        config, style = self.config, _style(self)
        self.encoder, self.decoder = VaeEncoder(config, style), VaeDecoder(config, style)
        # Named by the attributes that hold them.
        self.quant_conv, self.post_quant_conv = (
            style.conv(width, None, kernel=1)
            for width in (2 * config.latent_channels, config.latent_channels)
        )

    def encode(self, pictures: Pictures) -> tuple[Latents, Latents]:
        """What latents a picture may have: a normal distribution of each number.

        Args:
            pictures: of a height and width that `2^(resolutions - 1)` divides.

        Returns:
            Mean, and logarithm of the variance, before `scaling_factor`.
        """
        return moments_of(self.moments(pictures))

    def moments(self, pictures: Pictures) -> Moments:
        """Mean and logarithm of the variance behind one another, the latter not yet bounded."""
        hidden = jnp.asarray(pictures, self.dtype).transpose(0, 2, 3, 1)  # NCHW -> NHWC
        return self.quant_conv(self.encoder(hidden)).transpose(0, 3, 1, 2)

    def decode(self, latents: Latents) -> Pictures:
        """The pictures of latents that are already divided by `scaling_factor`."""
        hidden = jnp.asarray(latents, self.dtype).transpose(0, 2, 3, 1)
        return self.decoder(self.post_quant_conv(hidden)).transpose(0, 3, 1, 2)

    def __call__(self, pictures: Pictures) -> Pictures:
        """Pictures encoded to their means, and decoded."""
        return self.decode(self.encode(pictures)[0])


def moments_of(both: Moments) -> tuple[Latents, Latents]:
    """Mean and logarithm of the variance, from the channels of `Vae.moments`."""
    mean, logvar = jnp.split(both, 2, axis=1)
    return mean, logvar.clip(_LOWEST, _HIGHEST)


def _style(vae: Vae) -> Style:
    return Style(
        groups=vae.config.norm_num_groups,
        eps=_EPS,
        linear_projection=True,
        dtype=vae.dtype,
        param_dtype=vae.param_dtype,
    )


class VaeEncoder(nn.Module):
    """From the picture down to the lowest resolution.

    Attributes:
        config: what to compute.
        style: what all layers share.
    """

    config: VaeConfig
    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> NewPicture:
        """`(batch, height, width, colours)` -> `(batch, rows, columns, 2 channels)`."""
        config, style, widths = self.config, self.style, self.config.block_out_channels
        hidden = style.conv(widths[0], "conv_in")(hidden)
        for i, width in enumerate(widths):
            then = "down" if i < len(widths) - 1 else None
            block = VaeBlock(width, config.layers_per_block, then, style, name=f"down_blocks_{i}")
            hidden = block(hidden)
        hidden = VaeMiddle(style, name="mid_block")(hidden)
        hidden = nn.silu(style.group_norm("conv_norm_out")(hidden))
        return style.conv(2 * config.latent_channels, "conv_out")(hidden)


class VaeDecoder(nn.Module):
    """From the lowest resolution up to the picture.

    Attributes:
        config: what to compute.
        style: what all layers share.
    """

    config: VaeConfig
    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> NewPicture:
        """`(batch, rows, columns, channels)` -> `(batch, height, width, colours)`."""
        config, style, widths = self.config, self.style, self.config.block_out_channels[::-1]
        hidden = style.conv(widths[0], "conv_in")(hidden)
        hidden = VaeMiddle(style, name="mid_block")(hidden)
        for i, width in enumerate(widths):
            then = "up" if i < len(widths) - 1 else None
            layers = config.layers_per_block + 1
            hidden = VaeBlock(width, layers, then, style, name=f"up_blocks_{i}")(hidden)
        hidden = nn.silu(style.group_norm("conv_norm_out")(hidden))
        return style.conv(config.out_channels, "conv_out")(hidden)
