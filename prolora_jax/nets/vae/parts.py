"""Parts of a VAE: attention in blocks, blocks that change resolution.

Pictures are NHWC. Layers and residual convolutions are those of the UNet, and so are their names.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.unet.layers import Style
from prolora_jax.nets.unet.resnet import NewPicture, Picture, ResnetBlock, Upsample

Tokens = Float[Array, "batch tokens width"]

AT_ONCE = 1024
"""Pixels that look at all others at a time: 64 MiB of scores for a picture of 1024 x 1024."""


def attend(query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    """Attention with one head, some rows at a time: its memory grows with the tokens, no faster.

    Args:
        query: who looks.
        key: what is looked at.
        value: what is seen there.

    Returns:
        `softmax(query key^T / sqrt(width)) value` (arXiv 1706.03762), scores in float32.
    """
    batch, tokens, width = query.shape

    def some(rows: Array) -> Array:
        scores = jnp.einsum("bqc,bkc->bqk", rows, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bqk,bkc->bqc", weights, value)

    query = query * width**-0.5
    if tokens <= AT_ONCE:
        return some(query)
    blocks = -(-tokens // AT_ONCE)
    padded = jnp.pad(query, ((0, 0), (0, blocks * AT_ONCE - tokens), (0, 0)))
    rows = padded.reshape(batch, blocks, AT_ONCE, width).swapaxes(0, 1)
    found = jax.lax.map(some, rows).swapaxes(0, 1)
    return found.reshape(batch, blocks * AT_ONCE, width)[:, :tokens]


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
        q, k, v = (style.dense(channels, name)(tokens) for name in ("query", "key", "value"))
        mixed = style.dense(channels, "proj_attn")(attend(q, k, v))
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
