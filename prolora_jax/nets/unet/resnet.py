"""Residual convolutions, and the layers between resolutions. Pictures are NHWC."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.unet.layers import Style

Picture = Float[Array, "batch height width channels"]
NewPicture = Float[Array, "batch new_height new_width new_channels"]


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut; between them a UNet adds the time's embedding.

    Attributes:
        channels: channels that come out.
        style: what all layers share.
    """

    channels: int
    style: Style

    @nn.compact
    def __call__(
        self, hidden: Picture, time: Float[Array, "batch time"] | None = None
    ) -> NewPicture:
        """`(batch, height, width, in)` -> `(batch, height, width, channels)`."""
        style, skip = self.style, hidden
        hidden = nn.silu(style.group_norm("norm1")(hidden))
        hidden = style.conv(self.channels, "conv1")(hidden)
        if time is not None:
            hidden += style.dense(self.channels, "time_emb_proj")(nn.silu(time))[:, None, None, :]
        hidden = nn.silu(style.group_norm("norm2")(hidden))
        hidden = style.conv(self.channels, "conv2")(hidden)
        if skip.shape[-1] != self.channels:
            skip = style.conv(self.channels, "conv_shortcut", kernel=1)(skip)
        return skip + hidden


class Downsample(nn.Module):
    """Half the height and width, rounded up, by a strided convolution.

    Attributes:
        style: what all layers share.
    """

    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> NewPicture:
        """`(batch, h, w, c)` -> `(batch, ceil(h / 2), ceil(w / 2), c)`."""
        return self.style.conv(hidden.shape[-1], "conv", stride=2)(hidden)


class Upsample(nn.Module):
    """Every pixel four times, cut to a size, then a convolution.

    Attributes:
        style: what all layers share.
    """

    style: Style

    @nn.compact
    def __call__(self, hidden: Picture, size: tuple[int, int]) -> NewPicture:
        """`(batch, h, w, c)` -> `(batch, *size, c)`, `size` as it was before `Downsample`."""
        batch, height, width, channels = hidden.shape
        doubled = jnp.broadcast_to(
            hidden[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
        ).reshape(batch, 2 * height, 2 * width, channels)
        return self.style.conv(channels, "conv")(doubled[:, : size[0], : size[1]])
