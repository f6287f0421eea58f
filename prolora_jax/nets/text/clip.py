"""CLIP's text encoder in Flax, with parameters named as transformers' Flax classes name them.

A transformer with causal attention and norms before each layer (arXiv 2103.00020, section 2.4).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from prolora_jax.nets.text.config import ClipConfig

Hidden = Float[Array, "batch length width"]

_LEGACY_EOS = 2
"""What configurations of before July 2023 say of the end's token, whatever it is."""


class ClipText(NamedTuple):
    """What a text encoder says of prompts.

    Attributes:
        last: of the last layer, after the final norm, `(batch, length, width)`.
        hidden: before the first layer and after each, without the final norm, `(batch, length,
            width)` each.
        pooled: `last` at each prompt's end, `(batch, width)`; projected, `(batch, projection)`,
            where the encoder does that.
    """

    last: Any
    hidden: tuple[Any, ...]
    pooled: Any


class ClipTextEncoder(nn.Module):
    """Embeds the tokens of prompts.

    Attributes:
        config: what to compute.
        projected: whether the summary is projected, as SDXL's second encoder does.
        dtype: what to compute in; norms and softmax are in float32 whatever it is.
        param_dtype: what `init` makes parameters in.
    """

    config: ClipConfig
    projected: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> ClipText:
        """What the encoder says of prompts.

        Args:
            ids: tokens, at most as many as there are positions.

        Returns:
            All of it; what is not used costs nothing in a compiled function.
        """
        last, hidden = TextTower(self.config, self.dtype, self.param_dtype, name="text_model")(ids)
        pooled = jnp.take_along_axis(last, self._ends(ids)[:, None, None], axis=1)[:, 0]
        if self.projected:
            project = nn.Dense(
                self.config.projection_dim,
                use_bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="text_projection",
            )
            pooled = project(pooled)
        return ClipText(last, hidden, pooled)

    def _ends(self, ids: Int[Array, "batch length"]) -> Int[Array, " batch"]:
        """The place of each prompt's end: the first such token, as padding may be the same."""
        end = self.config.eos_token_id
        return jnp.argmax(ids if end == _LEGACY_EOS else ids == end, axis=-1)


class _Part(nn.Module):
    """What all parts of one encoder share.

    Attributes:
        config: what to compute.
        dtype: what to compute in.
        param_dtype: what `init` makes parameters in.
    """

    config: ClipConfig
    dtype: Any
    param_dtype: Any

    def _dense(self, width: int, name: str) -> nn.Dense:
        return nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

    def _norm(self, name: str) -> nn.LayerNorm:
        # Not the fast variance, a difference of two means: a few of CLIP's channels are a thousand
        # times the others.
        return nn.LayerNorm(
            epsilon=self.config.layer_norm_eps,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def _part(self, kind: type["_Part"], name: str) -> Any:
        return kind(self.config, self.dtype, self.param_dtype, name=name)


class TextTower(_Part):
    """Embeddings, layers and the final norm."""

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> tuple[Array, tuple[Array, ...]]:
        """`(batch, length)` -> `(batch, length, width)`, and what there was on the way."""
        embedded = self._part(TextEmbeddings, "embeddings")(ids)
        hidden = self._part(TextLayers, "encoder")(embedded)
        return self._norm("final_layer_norm")(hidden[-1]), hidden


class TextEmbeddings(_Part):
    """A vector of each token, and one of each place."""

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> Hidden:
        """`(batch, length)` -> `(batch, length, width)`."""
        config, kinds = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width, length = config.hidden_size, ids.shape[1]
        tokens = nn.Embed(config.vocab_size, width, name="token_embedding", **kinds)
        places = nn.Embed(config.max_position_embeddings, width, name="position_embedding", **kinds)
        return tokens(ids) + places(jnp.arange(length))[None]


class TextLayers(_Part):
    """All layers, under the name that torch's list of them has."""

    @nn.compact
    def __call__(self, hidden: Hidden) -> tuple[Array, ...]:
        """`(batch, length, width)` -> the same, and after each layer."""
        return self._part(TextLayerList, "layers")(hidden)


class TextLayerList(_Part):
    """The layers one after the other."""

    @nn.compact
    def __call__(self, hidden: Hidden) -> tuple[Array, ...]:
        """`(batch, length, width)` -> the same, and after each layer."""
        found = (hidden,)
        for i in range(self.config.num_hidden_layers):
            found = (*found, self._part(TextLayer, str(i))(found[-1]))
        return found


class TextLayer(_Part):
    """Attention to what stands before, and a feed-forward net, each beside a shortcut."""

    @nn.compact
    def __call__(self, hidden: Hidden) -> Hidden:
        """`(batch, length, width)` -> the same."""
        hidden += self._part(TextAttention, "self_attn")(self._norm("layer_norm1")(hidden))
        return hidden + self._part(TextFeedForward, "mlp")(self._norm("layer_norm2")(hidden))


class TextAttention(_Part):
    """Attention of each token to itself and to those before it."""

    @nn.compact
    def __call__(self, hidden: Hidden) -> Hidden:
        """`(batch, length, width)` -> the same."""
        (batch, length, width), heads = hidden.shape, self.config.num_attention_heads
        q, k, v = (
            self._dense(width, f"{name}_proj")(hidden).reshape(batch, length, heads, -1)
            for name in "qkv"
        )
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk",
            q * (width // heads) ** -0.5,
            k,
            preferred_element_type=jnp.float32,
        )
        seen = jnp.tril(jnp.ones((1, 1, length, length), bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(v.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width)
        return self._dense(width, "out_proj")(mixed)


class TextFeedForward(_Part):
    """A wider layer, the activation, and one back."""

    @nn.compact
    def __call__(self, hidden: Hidden) -> Hidden:
        """`(batch, length, width)` -> the same."""
        inner = self._dense(self.config.intermediate_size, "fc1")(hidden)
        if self.config.hidden_act == "quick_gelu":
            inner = inner * nn.sigmoid(1.702 * inner)
        else:
            inner = nn.gelu(inner, approximate=False)
        return self._dense(hidden.shape[-1], "fc2")(inner)
