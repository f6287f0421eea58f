"""Parts of a VAE: attention in blocks, blocks that change resolution.

Pictures are NHWC. Layers and residual convolutions are those of the UNet, and so are their names.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.unet.attention import AT_ONCE, attend
from prolora_jax.nets.unet.layers import Style
from prolora_jax.nets.unet.resnet import NewPicture, Picture, ResnetBlock, Upsample

Tokens = Float[Array, "batch tokens width"]


class VaeAttention(nn.Module):
    """Attention of all pixels to all, beside a shortcut.

    Attributes:
        style: what all layers share.
    """

    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> Picture:
        """`(batch, height, width, channels)` -> the same."""
        style, channels = self.style, hidden.shape[-1]
        tokens = style.group_norm("group_norm")(hidden).reshape(len(hidden), -1, channels)
        # One head; of 1024 rows the scores are 64 MiB for a picture of 1024 x 1024.
        q, k, v = (style.dense(channels, n)(tokens)[:, :, None] for n in ("query", "key", "value"))
        mixed = style.dense(channels, "proj_attn")(attend(q, k, v, whole=AT_ONCE)[:, :, 0])
        return hidden + mixed.reshape(hidden.shape)


class VaeMiddle(nn.Module):
    """Resnet, attention, resnet.

    Attributes:
        style: what all layers share.
    """

    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> Picture:
        """`(batch, height, width, channels)` -> the same."""
        channels = hidden.shape[-1]
        hidden = ResnetBlock(channels, self.style, name="resnets_0")(hidden)
        hidden = VaeAttention(self.style, name="attentions_0")(hidden)
        return ResnetBlock(channels, self.style, name="resnets_1")(hidden)


class VaeBlock(nn.Module):
    """Resnets of one resolution, and the layer to the next.

    Attributes:
        channels: channels that come out.
        layers: number of resnets.
        then: what follows: half the resolution (`down`), double (`up`), or nothing.
        style: what all layers share.
    """

    channels: int
    layers: int
    then: str | None
    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> NewPicture:
        """`(batch, height, width, in)` -> `(batch, new_height, new_width, channels)`."""
        for j in range(self.layers):
            hidden = ResnetBlock(self.channels, self.style, name=f"resnets_{j}")(hidden)
        if self.then == "up":
            _, height, width, _ = hidden.shape
            return Upsample(self.style, name="upsamplers_0")(hidden, (2 * height, 2 * width))
        if self.then == "down":
            return VaeDownsample(self.style, name="downsamplers_0")(hidden)
        return hidden


class VaeDownsample(nn.Module):
    """Half the height and width, rounded down, by a strided convolution.

    Attributes:
        style: what all layers share.
    """

    style: Style

    @nn.compact
    def __call__(self, hidden: Picture) -> NewPicture:
        """`(batch, h, w, c)` -> `(batch, h // 2, w // 2, c)`."""
        # Padded behind only, unlike the UNet's.
        return self.style.conv(hidden.shape[-1], "conv", stride=2, pad=(0, 1))(hidden)
