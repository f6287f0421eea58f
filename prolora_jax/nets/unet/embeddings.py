"""How a UNet is told the time and the size of the picture."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Num

from prolora_jax.nets.unet.layers import Style

_LONGEST_PERIOD = 10_000


def sinusoids(
    values: Num[Array, " count"], width: int, *, cosines_first: bool, shift: int
) -> Float[Array, "count {width}"]:
    """Sines and cosines of each value at frequencies from 1 down to 1 / 10000.

    Args:
        values: times, or sizes in pixels.
        width: length of each embedding, even.
        cosines_first: whether the cosines stand before the sines.
        shift: what is taken off the number of frequencies where they are spread.

    Returns:
        Embeddings in float32, whatever the net computes in: a time of 999 in bfloat16 is 1000.
    """
    half = width // 2
    steps = jnp.arange(half, dtype=jnp.float32) / (half - shift)
    angles = values.astype(jnp.float32)[:, None] * jnp.exp(-math.log(_LONGEST_PERIOD) * steps)[None]
    waves = (jnp.cos(angles), jnp.sin(angles))
    return jnp.concatenate(waves if cosines_first else waves[::-1], axis=-1)


class EmbeddingMLP(nn.Module):
    """Two linear layers with a SiLU between them.

    Attributes:
        width: width of both.
        style: what all layers share.
    """

    width: int
    style: Style

    @nn.compact
    def __call__(self, embedding: Float[Array, "batch in"]) -> Float[Array, "batch width"]:
        """`(batch, in)` -> `(batch, width)`."""
        hidden = nn.silu(self.style.dense(self.width, "linear_1")(embedding))
        return self.style.dense(self.width, "linear_2")(hidden)
