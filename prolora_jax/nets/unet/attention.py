"""Transformer blocks over the pixels of a picture, with a text to look at."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.unet.layers import Style

Tokens = Float[Array, "batch tokens width"]
Text = Float[Array, "batch text text_width"]

Heads = Float[Array, "batch tokens heads share"]
OtherHeads = Float[Array, "batch others heads share"]

AT_ONCE = 1024
"""Tokens that look at all others at a time, where there are many."""
WHOLE = 4096
"""Tokens of a UNet that look at once: those of Stable Diffusion at 512 pixels, of SDXL at 1024."""


def attend(query: Heads, key: OtherHeads, value: OtherHeads, *, whole: int) -> Heads:
    """Attention, of many tokens some at a time: its memory grows with their number, no faster.

    Args:
        query: who looks.
        key: what is looked at.
        value: what is seen there.
        whole: number of tokens up to which all look at once.

    Returns:
        `softmax(query key^T / sqrt(share)) value` (arXiv 1706.03762), scores in float32.
    """
    batch, tokens, heads, share = query.shape

    def some(rows: Array) -> Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", rows, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    query = query * share**-0.5
    if tokens <= whole:
        return some(query)
    blocks = -(-tokens // AT_ONCE)
    padded = jnp.pad(query, ((0, 0), (0, blocks * AT_ONCE - tokens), (0, 0), (0, 0)))
    rows = padded.reshape(batch, blocks, AT_ONCE, heads, share).swapaxes(0, 1)
    found = jax.lax.map(some, rows).swapaxes(0, 1)
    return found.reshape(batch, blocks * AT_ONCE, heads, share)[:, :tokens]


class Attention(nn.Module):
    """Attention of tokens to others, or to themselves.

    Attributes:
        heads: number of heads; each has its share of the width.
        style: what all layers share.
    """

    heads: int
    style: Style

    @nn.compact
    def __call__(self, hidden: Tokens, others: Text) -> Tokens:
        """`(batch, tokens, width)`, `(batch, text, text_width)` -> `(batch, tokens, width)`."""
        batch, _, width = hidden.shape
        share = width // self.heads
        q, k, v = (
            self.style.dense(width, name, bias=False)(tokens).reshape(batch, -1, self.heads, share)
            for name, tokens in (("to_q", hidden), ("to_k", others), ("to_v", others))
        )
        mixed = attend(q, k, v, whole=WHOLE).reshape(batch, -1, width)
        return self.style.dense(width, "to_out_0")(mixed)


class GatedLayer(nn.Module):
    """A linear layer whose one half is gated by the other: GEGLU.

    Attributes:
        width: width that comes out.
        style: what all layers share.
    """

    width: int
    style: Style

    @nn.compact
    def __call__(self, hidden: Tokens) -> Float[Array, "batch tokens out"]:
        """`(batch, tokens, in)` -> `(batch, tokens, width)`."""
        value, gate = jnp.split(self.style.dense(2 * self.width, "proj")(hidden), 2, axis=-1)
        # Not the approximation by tanh, which diffusers' Flax classes have: torch has the exact.
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """A gated layer of four times the width, and one back.

    Attributes:
        style: what all layers share.
    """

    style: Style

    @nn.compact
    def __call__(self, hidden: Tokens) -> Tokens:
        """`(batch, tokens, width)` -> the same."""
        width = hidden.shape[-1]
        return self.style.dense(width, "net_2")(
            GatedLayer(4 * width, self.style, name="net_0")(hidden)
        )


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text and a feed-forward net, each beside a shortcut.

    Attributes:
        heads: number of attention heads.
        style: what all layers share.
    """

    heads: int
    style: Style

    @nn.compact
    def __call__(self, hidden: Tokens, text: Text) -> Tokens:
        """`(batch, tokens, width)` -> the same."""
        style = self.style
        normed = style.layer_norm("norm1")(hidden)
        hidden += Attention(self.heads, style, name="attn1")(normed, normed)
        normed = style.layer_norm("norm2")(hidden)
        hidden += Attention(self.heads, style, name="attn2")(normed, text)
        return hidden + FeedForward(style, name="ff")(style.layer_norm("norm3")(hidden))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a picture, beside a shortcut.

    Attributes:
        depth: number of blocks.
        heads: attention heads of each.
        style: what all layers share.
    """

    depth: int
    heads: int
    style: Style

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch height width channels"], text: Text
    ) -> Float[Array, "batch height width channels"]:
        """`(batch, height, width, channels)` -> the same."""
        style, skip = self.style, hidden
        batch, height, width, channels = hidden.shape
        # torch's default, and not the net's own: the one norm for which the two differ.
        hidden = style.group_norm("norm", eps=1e-6)(hidden)
        hidden = self._projection(hidden, "proj_in").reshape(batch, height * width, channels)
        block = style.block(TransformerBlock)
        for k in range(self.depth):
            hidden = block(self.heads, style, name=f"transformer_blocks_{k}")(hidden, text)
        hidden = hidden.reshape(batch, height, width, channels)
        return skip + self._projection(hidden, "proj_out")

    def _projection(self, hidden: Array, name: str) -> Array:
        """One linear map of all pixels; only the shape of its kernel differs between nets."""
        channels = hidden.shape[-1]
        if self.style.linear_projection:
            return self.style.dense(channels, name)(hidden)
        return self.style.conv(channels, name, kernel=1)(hidden)
