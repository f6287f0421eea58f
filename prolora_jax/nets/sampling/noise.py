"""The noise of each picture, from a key of its own: it does not depend on what else is drawn."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.unet.unet import Anywhere

Key = Anywhere | int
"""A seed; a key for all pictures; or one for each, typed `(batch,)` or raw `(batch, 2)`."""

# Other generators give a picture other noise when it is drawn beside others (by vmap).
_GENERATOR = "threefry2x32"


def picture_keys(seeds: Sequence[int]) -> Array:
    """A key for each picture, `(batch,)`, each from a seed of its own."""
    return jnp.stack([jax.random.key(seed, impl=_GENERATOR) for seed in seeds])


@partial(jax.jit, static_argnums=1)
def starting_noise(
    keys: Array, shape: tuple[int, int, int]
) -> Float[Array, "batch channels height width"]:
    """The noise that pictures start from, each from its own key.

    Args:
        keys: of `picture_keys`.
        shape: of one picture's latents: channels, height, width.

    Returns:
        Standard normal, float32.
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def fresh_noise(
    keys: Array, t: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """The noise that a step from time `t` adds.

    Args:
        keys: one for each picture, `(batch,)`.
        t: the time; no two have the same noise.
        shape: of one picture.

    Returns:
        Standard normal; that of a picture depends on nothing but its key and the time.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape, jnp.float32))(
        keys
    )


def typed_key(key: Key) -> Array:
    """Any kind of key as JAX's typed one.

    Args:
        key: a seed, a key for all pictures, or one for each.

    Returns:
        `()` or `(batch,)`.

    Raises:
        UsageError: it is none of these, or of another generator.
    """
    if isinstance(key, int):
        return jax.random.key(key, impl=_GENERATOR)
    typed = jnp.asarray(key)
    if key.dtype == jnp.uint32 and key.shape[-1:] == (2,):
        typed = jax.random.wrap_key_data(typed, impl=_GENERATOR)
    is_key = jnp.issubdtype(typed.dtype, jax.dtypes.prng_key)
    if not is_key or str(jax.random.key_impl(typed)) != _GENERATOR or typed.ndim > 1:
        raise UsageError(
            f"key: found {key.dtype} of shape {key.shape}; expected a seed, or a key of "
            f"{_GENERATOR} for all pictures or for each; make them with picture_keys",
            code=Refusal.BAD_OPTION,
        )
    return typed


def check_pictures(key: Array, pictures: tuple[int, ...]) -> None:
    """Check that there is a key for each picture.

    Args:
        key: typed.
        pictures: how the shape of the latents begins, `(batch,)`.

    Raises:
        UsageError: there is one for all, or another number.
    """
    if key.ndim == 0 or key.shape != pictures:
        raise UsageError(
            f"key: found keys of shape {key.shape} for latents whose shape begins with "
            f"{pictures}; expected a key for each picture; give the latents' shape to "
            f"set_timesteps, and to create_state one key or as many as there are pictures",
            code=Refusal.BAD_OPTION,
        )
