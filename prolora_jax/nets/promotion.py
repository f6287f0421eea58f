"""How arrays of different dtypes and ranks come together where a net is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def numpy_promotion() -> Iterator[None]:
    """Within this context they do as NumPy has it, whatever the program has asked JAX for.

    Flax's norms and its layers in half precision count on that.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
