"""The causal language model, with parameters named as transformers' Flax classes name them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from prolora_jax.nets.lm.config import LmConfig
from prolora_jax.nets.lm.layers import Cache, LmLayerNet, RmsNorm, Sight
from prolora_jax.nets.promotion import numpy_promotion

Ids = Int[Array, "batch length"]


class Predicted(NamedTuple):
    """What a model says of the next tokens.

    Attributes:
        logits: `(batch, length, vocabulary)`, float32.
        caches: one a layer.
    """

    logits: Float[Array, "batch length vocabulary"]
    caches: tuple[Cache, ...]


class CausalLm(nn.Module):
    """A decoder that predicts the next token.

    Attributes:
        config: what to compute.
        dtype: what to compute in; norms, softmax and logits are in float32 whatever it is.
        param_dtype: what `init` makes parameters in.
        remat: whether layers are computed again for gradients instead of being kept.
    """

    config: LmConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        ids: Ids,
        real: Bool[Array, "batch room"] | None = None,
        caches: tuple[Cache, ...] | None = None,
        start: Any = 0,
    ) -> Predicted:
        """Logits of the token after each.

        Args:
            ids: tokens.
            real: which places hold tokens of the text; padding is not looked at, and positions
                count what is real. All where None.
            caches: keys and values of the tokens before, with room for these.
            start: number of tokens before these.

        Returns:
            Logits, and the caches with these tokens.
        """
        with numpy_promotion():
            return self._predicted(ids, real, caches, start)

    def _predicted(
        self, ids: Ids, real: Any, caches: tuple[Cache, ...] | None, start: Any
    ) -> Predicted:
        room = ids.shape[1] if caches is None else caches[0].keys.shape[1]
        real = jnp.ones((ids.shape[0], room), bool) if real is None else real
        sight = sight_of(ids.shape[1], real, start, self.config.window)
        dtypes = self.dtype, self.param_dtype
        decoder = _Decoder(self.config, *dtypes, self.remat, name="model")
        hidden, table, kept = decoder(ids, sight, caches)
        if self.config.tie_word_embeddings:
            logits = hidden @ table.astype(hidden.dtype).T
        else:
            logits = nn.Dense(
                self.config.vocab_size,
                use_bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="lm_head",
            )(hidden)
        logits = logits.astype(jnp.float32)
        cap = self.config.logit_cap
        return Predicted(logits if cap is None else cap * jnp.tanh(logits / cap), kept)


class _Decoder(nn.Module):
    config: LmConfig
    dtype: Any
    param_dtype: Any
    remat: bool

    @nn.compact
    def __call__(
        self, ids: Ids, sight: Sight, caches: tuple[Cache, ...] | None
    ) -> tuple[Array, Array, tuple[Cache, ...]]:
        c = self.config
        embed = nn.Embed(
            c.vocab_size, c.hidden_size, param_dtype=self.param_dtype, name="embed_tokens"
        )
        x = embed(ids).astype(self.dtype)
        if c.scaled_embedding:
            x *= jnp.asarray(c.hidden_size**0.5, self.dtype)
        layers = _Layers(c, self.dtype, self.param_dtype, self.remat, name="layers")
        x, kept = layers(x, sight, caches)
        norm = RmsNorm(c.rms_norm_eps, c.unit_norms, self.param_dtype, name="norm")
        return norm(x), embed.embedding, kept


class _Layers(nn.Module):
    config: LmConfig
    dtype: Any
    param_dtype: Any
    remat: bool

    @nn.compact
    def __call__(
        self, x: Array, sight: Sight, caches: tuple[Cache, ...] | None
    ) -> tuple[Array, tuple[Cache, ...]]:
        c, kept = self.config, []
        kind = nn.remat(LmLayerNet) if self.remat else LmLayerNet
        for i in range(c.num_hidden_layers):
            windowed = bool(c.windowed) and c.windowed[i]
            layer = kind(c, windowed, self.dtype, self.param_dtype, name=str(i))
            x, cache = layer(x, sight, None if caches is None else caches[i])
            kept.append(cache)
        return x, tuple(kept)


def sight_of(length: int, real: Bool[Array, "batch room"], start: Any, window: int | None) -> Sight:
    """Positions of tokens and what each may look at.

    Args:
        length: of the tokens in question.
        real: which places hold tokens of the text.
        start: place of the first token in question.
        window: tokens that windowed layers look back on, each itself among them.
    """
    room = real.shape[1]
    counted = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    own = start + jnp.arange(length)
    back = own[:, None] - jnp.arange(room)[None, :]
    seen = (back >= 0)[None] & real[:, None, :]
    near = seen if window is None else seen & (back < window)[None]
    return Sight(counted[:, own], seen, near, start)


def empty_caches(config: LmConfig, batch: int, room: int, dtype: Any) -> tuple[Cache, ...]:
    """Room for keys and values of so many tokens, in every layer."""
    shape = (batch, room, config.num_key_value_heads, config.head_dim)
    empty = jnp.zeros(shape, dtype)
    return tuple(Cache(empty, empty) for _ in range(config.num_hidden_layers))
