"""Products on the device: the only place that calls a matmul for the method.

The precision is stated, because accelerators otherwise multiply float32 in reduced precision
(bfloat16 on TPU costs 3e-3..6e-3 of the result).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST


def matmul(
    a: Float[Array | np.ndarray, "*batch m k"], b: Float[Array | np.ndarray, "*batch k n"]
) -> Float[Array, "..."]:
    """Matrix product at full float32 precision on every backend."""
    return jnp.matmul(a, b, precision=HIGHEST)
