"""Attention, feed-forward nets, norms, and the layers made of them (arXiv 2302.13971)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from prolora_jax.nets.lm.config import LmConfig
from prolora_jax.nets.lm.rope import rotated

Hidden = Float[Array, "batch length width"]
_ACTIVATIONS = {
    "silu": nn.silu,
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
}


class Cache(NamedTuple):
    """Keys and values of one layer, of all tokens so far; room for more behind them.

    Attributes:
        keys: `(batch, room, kv heads, width)`.
        values: the same.
    """

    keys: Any
    values: Any


class Sight(NamedTuple):
    """What every layer is told beside the hidden states.

    Attributes:
        positions: of the tokens, `(batch, length)`.
        seen: which tokens each may look at, `(batch, length, room)`.
        near: the same of windowed layers.
        start: where in the room of the caches these tokens go.
    """

    positions: Int[Array, "batch length"]
    seen: Bool[Array, "batch length room"]
    near: Bool[Array, "batch length room"]
    start: Any


class RmsNorm(nn.Module):
    """Divides by the root mean square and multiplies; computed in float32.

    Attributes:
        eps: added to the mean square.
        unit: whether `1 + weight` multiplies.
        param_dtype: of the weight.
    """

    eps: float
    unit: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*dims width"]) -> Float[Array, "*dims width"]:
        """`x` in its own dtype."""
        start = nn.initializers.zeros if self.unit else nn.initializers.ones
        weight = self.param("weight", start, (x.shape[-1],), self.param_dtype)
        high = x.astype(jnp.float32)
        high *= jax.lax.rsqrt(jnp.mean(high**2, axis=-1, keepdims=True) + self.eps)
        if self.unit:
            return (high * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
        return weight.astype(x.dtype) * high.astype(x.dtype)


class LmAttention(nn.Module):
    """Causal attention with fewer heads of keys and values than of queries.

    Attributes:
        config: of the model.
        windowed: whether it looks back on a window alone.
        dtype: what to compute in; scores and softmax are in float32.
        param_dtype: what `init` makes parameters in.
    """

    config: LmConfig
    windowed: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Hidden, sight: Sight, cache: Cache | None) -> tuple[Hidden, Cache]:
        """What attention adds, and keys and values of all tokens so far."""
        c = self.config
        q = self._heads(x, "q_proj", c.num_attention_heads)
        k = self._heads(x, "k_proj", c.num_key_value_heads)
        v = self._heads(x, "v_proj", c.num_key_value_heads)
        if c.qk_norm != "none":
            q, k = self._normed(q, "q_norm"), self._normed(k, "k_norm")
        q, k = rotated(q, sight.positions, c.rope), rotated(k, sight.positions, c.rope)
        if cache is not None:
            place = (0, sight.start, 0, 0)
            k = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), place)
            v = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), place)
        groups = (c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads)
        q = q.reshape(*q.shape[:2], *groups, c.head_dim)
        scores = jnp.einsum("blkgd,bskd->bkgls", q, k, preferred_element_type=jnp.float32)
        scores *= c.query_scale
        if c.attention_cap is not None:
            scores = c.attention_cap * jnp.tanh(scores / c.attention_cap)
        seen = (sight.near if self.windowed else sight.seen)[:, None, None]
        weights = nn.softmax(jnp.where(seen, scores, -1e30), axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bkgls,bskd->blkgd", weights, v.astype(self.dtype))
        out = self._dense("o_proj", c.hidden_size, c.o_bias)(mixed.reshape(*x.shape[:2], -1))
        return out, Cache(k, v)

    def _heads(self, x: Hidden, name: str, heads: int) -> Array:
        width = self.config.head_dim
        out = self._dense(name, heads * width, self.config.qkv_bias)(x)
        return out.reshape(*x.shape[:2], heads, width)

    def _normed(self, x: Array, name: str) -> Array:
        norm = RmsNorm(self.config.rms_norm_eps, param_dtype=self.param_dtype, name=name)
        if self.config.qk_norm == "head":
            return norm(x)
        return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)

    def _dense(self, name: str, features: int, bias: bool) -> nn.Dense:
        return nn.Dense(features, bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name)


class LmMlp(nn.Module):
    """`down(act(gate x) * up x)`.

    Attributes:
        config: of the model.
        dtype: what to compute in.
        param_dtype: what `init` makes parameters in.
    """

    config: LmConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Hidden) -> Hidden:
        """What the feed-forward net adds."""
        c = self.config
        gate, up, down = (
            nn.Dense(width, c.mlp_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            for name, width in (
                ("gate_proj", c.intermediate_size),
                ("up_proj", c.intermediate_size),
                ("down_proj", c.hidden_size),
            )
        )
        return down(_ACTIVATIONS[c.hidden_act](gate(x)) * up(x))


class LmLayerNet(nn.Module):
    """One layer: attention, then a feed-forward net, each added to what comes in.

    Attributes:
        config: of the model.
        windowed: whether its attention looks back on a window alone.
        dtype: what to compute in.
        param_dtype: what `init` makes parameters in.
    """

    config: LmConfig
    windowed: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Hidden, sight: Sight, cache: Cache | None) -> tuple[Hidden, Cache]:
        """The hidden states after the layer, and the cache of its attention."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = LmAttention(self.config, self.windowed, **dtypes, name="self_attn")
        mlp = LmMlp(self.config, **dtypes, name="mlp")
        if self.config.norms == "before":
            added, cache = attention(self._norm("input_layernorm")(x), sight, cache)
            x = x + added
            return x + mlp(self._norm("post_attention_layernorm")(x)), cache
        if self.config.norms == "after":
            added, cache = attention(x, sight, cache)
            x = x + self._norm("post_attention_layernorm")(added)
            return x + self._norm("post_feedforward_layernorm")(mlp(x)), cache
        added, cache = attention(self._norm("input_layernorm")(x), sight, cache)
        x = x + self._norm("post_attention_layernorm")(added)
        inner = mlp(self._norm("pre_feedforward_layernorm")(x))
        return x + self._norm("post_feedforward_layernorm")(inner), cache

    def _norm(self, name: str) -> RmsNorm:
        c = self.config
        return RmsNorm(c.rms_norm_eps, c.unit_norms, param_dtype=self.param_dtype, name=name)
