"""One vision transformer for CLIP's and DINOv2's encoders, with transformers' Flax parameters.

The tree of a CLIP is that of `FlaxCLIPModel` without its text tower, that of a DINOv2 is
`FlaxDinov2Model`'s. Registers, which Flax's class has not, are beside the class token.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.vision.config import VisionConfig
from prolora_jax.nets.vision.parts import PictureTokens, VisionStyle, VisionTower
from prolora_jax.nets.vision.positions import resized_positions

Pixels = Float[Array, "batch height width 3"]

_NORMAL = nn.initializers.normal(0.02)


class Seen(NamedTuple):
    """What an encoder makes of pictures.

    Attributes:
        tokens: hidden states of all tokens, the class token first: of DINOv2 behind the last norm,
            of CLIP before it, as transformers' `last_hidden_state`.
        pooled: the class token behind the last norm.
        embedding: what pictures are compared by: of CLIP with a projection its projection, else
            the pooled token.
    """

    tokens: Float[Array, "batch tokens channels"]
    pooled: Float[Array, "batch channels"]
    embedding: Float[Array, "batch out"]


class VisionTransformer(nn.Module):
    """An encoder of pictures: patches, transformer layers, and the class token as a summary.

    Attributes:
        config: what to compute.
        dtype: what to compute in; norms and softmax are in float32 whatever it is.
        param_dtype: what `init` makes parameters in.
    """

    config: VisionConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: Pixels) -> Seen:
        """What the encoder makes of normalised pictures (`evaluation/metrics/preprocessing.py`).

        Args:
            pixels: channels last. A picture of another size than the encoder's own gets positions
                in between (bicubic); what does not fill a patch is cut off.

        Raises:
            UsageError: the pictures are smaller than a patch.
        """
        config = self.config
        if min(pixels.shape[1:3]) < config.patch:
            raise UsageError(
                f"pictures of {pixels.shape[1]} x {pixels.shape[2]} pixels: expected at least one "
                f"patch of {config.patch} x {config.patch}; enlarge them",
                code=Refusal.BAD_OPTION,
            )
        style = VisionStyle(config, self.dtype, self.param_dtype)
        if config.kind == "dinov2":
            hidden = DinoEmbeddings(style, name="embeddings")(pixels)
            hidden = VisionTower(style, name="encoder")(hidden)
            tokens = style.norm("layernorm")(hidden)
            return Seen(tokens, tokens[:, 0], tokens[:, 0])
        tokens, pooled = ClipVision(style, name="vision_model")(pixels)
        if config.projection is None:
            return Seen(tokens, pooled, pooled)
        projected = style.dense(config.projection, "visual_projection", bias=False)(pooled)
        return Seen(tokens, pooled, projected)


class ClipVision(nn.Module):
    """CLIP's encoder before its projection.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, pixels: Pixels) -> tuple[PictureTokens, Float[Array, "batch channels"]]:
        """The tokens behind the last layer, and the normed class token."""
        hidden = ClipVisionEmbeddings(self.style, name="embeddings")(pixels)
        hidden = self.style.norm("pre_layrnorm")(hidden)  # transformers' spelling
        hidden = VisionTower(self.style, name="encoder")(hidden)
        return hidden, self.style.norm("post_layernorm")(hidden[:, 0])


class ClipVisionEmbeddings(nn.Module):
    """Patches, the class token, and the positions of both.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, pixels: Pixels) -> PictureTokens:
        """`(batch, height, width, 3)` -> `(batch, 1 + patches, width)`."""
        style, config = self.style, self.style.config
        patches = style.patches("patch_embedding", bias=False)(pixels.astype(style.dtype))
        first = self.param("class_embedding", _NORMAL, (config.width,), style.param_dtype)
        count = 1 + config.grid**2
        table = nn.Embed(
            count, config.width, param_dtype=style.param_dtype, name="position_embedding"
        )(jnp.arange(count))
        return _placed(patches, first[None, None], table, config)


class DinoEmbeddings(nn.Module):
    """Patches, the class token, the positions of both, and registers, which have none.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, pixels: Pixels) -> PictureTokens:
        """`(batch, height, width, 3)` -> `(batch, 1 + registers + patches, width)`."""
        style, config = self.style, self.style.config
        patches = DinoPatches(style, name="patch_embeddings")(pixels.astype(style.dtype))

        def made(name: str, *shape: int) -> Array:
            return self.param(name, _NORMAL, (*shape, config.width), style.param_dtype)

        first = made("cls_token", 1, 1)
        if config.masked:
            made("mask_token", 1)  # training's; part of the tree, of no use here
        table = made("position_embeddings", 1, 1 + config.grid**2)[0]
        tokens = _placed(patches, first, table, config)
        if not config.registers:
            return tokens
        registers = made("register_tokens", 1, config.registers).astype(tokens.dtype)
        registers = jnp.broadcast_to(registers, (tokens.shape[0], *registers.shape[1:]))
        return jnp.concatenate((tokens[:, :1], registers, tokens[:, 1:]), axis=1)


class DinoPatches(nn.Module):
    """The convolution of DINOv2, on a level of its own.

    Attributes:
        style: what all layers share.
    """

    style: VisionStyle

    @nn.compact
    def __call__(self, pixels: Pixels) -> Float[Array, "batch rows columns channels"]:
        """`(batch, height, width, 3)` -> `(batch, rows, columns, width)`."""
        return self.style.patches("projection", bias=True)(pixels)


def _placed(patches: Array, first: Array, table: Array, config: VisionConfig) -> Array:
    """Tokens with their positions: the class token's, then the patches' row by row."""
    batch, rows, columns, width = patches.shape
    if (rows, columns) != (config.grid, config.grid):
        others = resized_positions(
            table[1:], config.grid, (rows, columns), antialias=config.registers > 0
        )
        table = jnp.concatenate((table[:1], others))
    first = jnp.broadcast_to(first.astype(patches.dtype), (batch, 1, width))
    tokens = jnp.concatenate((first, patches.reshape(batch, rows * columns, width)), axis=1)
    return tokens + table.astype(patches.dtype)[None]
