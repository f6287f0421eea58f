"""Products on the device: the only place that calls a matmul for the method.

The precision is stated, because accelerators otherwise multiply float32 in reduced precision
(bfloat16 on TPU costs 3e-3..6e-3 of the result). A TPU makes float32 of bfloat16 passes: six are
all of it, three (`HIGH`) leave out 1e-5 of the result, which a projection may lose. All else, Gram
matrices and singular forms among it, takes all of it everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST


def product_precision(platform: str) -> jax.lax.Precision:
    """What the products of a projection are computed in.

    Args:
        platform: of the devices, as JAX calls it.
    """
    return jax.lax.Precision.HIGH if platform == "tpu" else HIGHEST


def matmul(
    a: Float[Array | np.ndarray, "*batch m k"], b: Float[Array | np.ndarray, "*batch k n"]
) -> Float[Array, "..."]:
    """Matrix product at full float32 precision on every backend."""
    return jnp.matmul(a, b, precision=HIGHEST)


def projected(
    rows: Float[Array, "rows dim"], matrix: Float[Array | np.ndarray, "dim columns"]
) -> Float[Array, "rows columns"]:
    """Product of rank columns with a matrix of an operator, as exact as a projection has to be."""
    return jnp.matmul(rows, matrix, precision=product_precision(jax.default_backend()))
