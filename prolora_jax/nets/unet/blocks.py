"""The blocks of a UNet: one resolution down, the middle, one resolution up."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.unet.attention import Text, Transformer
from prolora_jax.nets.unet.layers import Style
from prolora_jax.nets.unet.resnet import Downsample, NewPicture, Picture, ResnetBlock, Upsample

Time = Float[Array, "batch time"]


class DownBlock(nn.Module):
    """Resnets, each with a transformer after it or none of them, then half the resolution.

    Attributes:
        channels: channels that come out.
        layers: number of resnets.
        depths: transformer blocks after each resnet; () for a block without attention.
        heads: attention heads.
        downsamples: whether the resolution is halved at the end.
        style: what all layers share.
    """

    channels: int
    layers: int
    depths: tuple[int, ...]
    heads: int
    downsamples: bool
    style: Style

    @nn.compact
    def __call__(self, hidden: Picture, time: Time, text: Text) -> tuple[Array, tuple[Array, ...]]:
        """The picture, and everything an up block is to be handed, oldest first."""
        style, kept = self.style, ()
        resnet = style.block(ResnetBlock)
        for j in range(self.layers):
            hidden = resnet(self.channels, style, name=f"resnets_{j}")(hidden, time)
            if self.depths:
                attention = Transformer(self.depths[j], self.heads, style, name=f"attentions_{j}")
                hidden = attention(hidden, text)
            kept = (*kept, hidden)
        if self.downsamples:
            hidden = Downsample(style, name="downsamplers_0")(hidden)
            kept = (*kept, hidden)
        return hidden, kept


class MidBlock(nn.Module):
    """Resnet, transformer, resnet; or, without a depth, the first resnet alone.

    Attributes:
        depth: transformer blocks; None for a block that is one resnet.
        heads: attention heads.
        style: what all layers share.
    """

    depth: int | None
    heads: int
    style: Style

    @nn.compact
    def __call__(self, hidden: Picture, time: Time, text: Text) -> Picture:
        """`(batch, height, width, channels)` -> the same."""
        style, channels = self.style, hidden.shape[-1]
        resnet = style.block(ResnetBlock)
        hidden = resnet(channels, style, name="resnets_0")(hidden, time)
        if self.depth is None:
            return hidden
        hidden = Transformer(self.depth, self.heads, style, name="attentions_0")(hidden, text)
        return resnet(channels, style, name="resnets_1")(hidden, time)


class UpBlock(nn.Module):
    """As `DownBlock`, and every resnet also sees what the way down has kept.

    Attributes:
        channels: channels that come out.
        depths: transformer blocks after each resnet; () for a block without attention.
        heads: attention heads.
        style: what all layers share.
    """

    channels: int
    depths: tuple[int, ...]
    heads: int
    style: Style

    @nn.compact
    def __call__(
        self,
        hidden: Picture,
        kept: tuple[Array, ...],
        time: Time,
        text: Text,
        size: tuple[int, int] | None,
    ) -> NewPicture:
        """The picture, of `size` where that is given: the resolution of the next block."""
        style = self.style
        resnet = style.block(ResnetBlock)
        for j, skip in enumerate(reversed(kept)):
            hidden = jnp.concatenate((hidden, skip), axis=-1)
            hidden = resnet(self.channels, style, name=f"resnets_{j}")(hidden, time)
            if self.depths:
                attention = Transformer(self.depths[j], self.heads, style, name=f"attentions_{j}")
                hidden = attention(hidden, text)
        return hidden if size is None else Upsample(style, name="upsamplers_0")(hidden, size)
