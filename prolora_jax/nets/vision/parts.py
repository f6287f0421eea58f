"""The layers of a vision transformer, in the names of transformers' Flax classes of both kinds."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.nets.vision.config import VisionConfig

PictureTokens = Float[Array, "batch tokens channels"]


@dataclass(frozen=True)
class VisionStyle:
    """What all layers of one encoder have in common.

    Attributes:
        config: what the encoder computes.
        dtype: what is computed in; norms and softmax are in float32 whatever it is.
        param_dtype: what new parameters are made in.
    """

    config: VisionConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def dense(self, width: int, name: str, *, bias: bool = True) -> nn.Dense:
        """A linear layer, `(..., in) -> (..., width)`."""
        return nn.Dense(
            width, use_bias=bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def norm(self, name: str) -> nn.LayerNorm:
        """A layer norm over the last axis."""
        return nn.LayerNorm(
            epsilon=self.config.eps, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def patches(self, name: str, *, bias: bool) -> nn.Conv:
        """Patches of NHWC pictures as one token each, row by row; what is left over is cut off."""
        patch = (self.config.patch,) * 2
        return nn.Conv(
            self.config.width,
            patch,
            patch,
            padding="VALID",
            use_bias=bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def activation(self, hidden: Array) -> Array:
        """`x Φ(x)`, or OpenAI's shortcut for it, `x σ(1.702 x)`."""
        if self.config.activation == "quick_gelu":
            return hidden * nn.sigmoid(1.702 * hidden)
        return nn.gelu(hidden, approximate=False)


def attended(q: PictureTokens, k: PictureTokens, v: PictureTokens, heads: int) -> PictureTokens:
    """Each token as a mixture of all: softmax(q kᵀ / √share) v, head by head.

    Args:
        q: queries.
        k: keys.
        v: values.
        heads: number of heads; each has its share of the width.
    """
    batch, tokens, width = q.shape
    q, k, v = (x.reshape(batch, tokens, heads, width // heads) for x in (q, k, v))
    scale = (width // heads) ** -0.5
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, width)


class VisionAttention(nn.Module):
    """Self-attention as CLIP names it: four layers on one level.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        style, config = self.style, self.style.config
        q, k, v = (
            style.dense(config.width, name, bias=config.biased)(hidden)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        return style.dense(config.width, "out_proj")(attended(q, k, v, config.heads))


class NestedMixing(nn.Module):
    """Queries, keys, values, and the mixture: the inner level of DINOv2's attention.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        config = self.style.config
        q, k, v = (
            self.style.dense(config.width, name, bias=config.biased)(hidden)
            for name in ("query", "key", "value")
        )
        return attended(q, k, v, config.heads)


class NestedOutput(nn.Module):
    """The linear layer behind it, on a level of its own.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        return self.style.dense(self.style.config.width, "dense")(hidden)


class NestedAttention(nn.Module):
    """Self-attention as DINOv2 names it, `attention.query` and `output.dense`.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        mixed = NestedMixing(self.style, name="attention")(hidden)
        return NestedOutput(self.style, name="output")(mixed)


class VisionFeedForward(nn.Module):
    """A layer to a larger width, and one back.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        inner = self.style.dense(self.style.config.inner, "fc1")(hidden)
        return self.style.dense(hidden.shape[-1], "fc2")(self.style.activation(inner))


class LayerScale(nn.Module):
    """A factor for each channel; of a kind that has none, nothing.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        shape, dtype = (self.style.config.width,), self.style.param_dtype
        factors = self.param("lambda1", nn.initializers.ones, shape, dtype)
        return hidden * factors.astype(hidden.dtype)[None, None]


class VisionLayer(nn.Module):
    """Self-attention and a feed-forward net, each behind a norm and beside a shortcut.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        style = self.style
        if style.config.kind == "clip":
            normed = style.norm("layer_norm1")(hidden)
            hidden += VisionAttention(style, name="self_attn")(normed)
            normed = style.norm("layer_norm2")(hidden)
            return hidden + VisionFeedForward(style, name="mlp")(normed)
        mixed = NestedAttention(style, name="attention")(style.norm("norm1")(hidden))
        hidden += LayerScale(style, name="layer_scale1")(mixed)
        fed = VisionFeedForward(style, name="mlp")(style.norm("norm2")(hidden))
        return hidden + LayerScale(style, name="layer_scale2")(fed)


class VisionLayers(nn.Module):
    """All layers, named by their numbers.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        for i in range(self.style.config.layers):
            hidden = VisionLayer(self.style, name=str(i))(hidden)
        return hidden


class VisionTower(nn.Module):
    """One more level around the layers, `encoder/layers` or `encoder/layer`.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, hidden: PictureTokens) -> PictureTokens:
        """`(batch, tokens, width)` -> the same."""
        name = "layers" if self.style.config.kind == "clip" else "layer"
        return VisionLayers(self.style, name=name)(hidden)
