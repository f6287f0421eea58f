"""Encoders of pictures with parameters: put on the device once every shape is what it must be."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prolora_jax.architectures.flax_trees import leaves, nested
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.unet.loading import Params

_UNUSED = ("embeddings/mask_token",)
"""What files leave out that were saved after training: nothing here reads it."""


def vision_params(
    net: nn.Module, tree: Mapping[str, Any], sample: tuple[Any, ...], origin: str
) -> Params:
    """The parameters of an encoder, on the device, in float32.

    Args:
        net: whose parameters they are.
        tree: nested dictionaries of NumPy arrays, in Flax layout.
        sample: shapes that the net is called with.
        origin: what to call the file in messages.

    Returns:
        The same tree of JAX arrays.

    Raises:
        BaseModelError: the arrays are not, one for one, those of the net (all wrong ones are
            counted in one message, five are named), or a number is not finite.
    """
    made: Any = jax.eval_shape(net.init, jax.random.key(0), *sample)
    want = {place: leaf.shape for place, leaf in leaves(made["params"])}
    arrays = dict(leaves(tree))
    for place in _UNUSED:
        if place in want and place not in arrays:
            arrays[place] = np.zeros(want[place], np.float32)
    found = {place: array.shape for place, array in arrays.items()}
    wrong = [k for k in sorted(want.keys() | found.keys()) if want.get(k) != found.get(k)]
    if wrong:
        lines = "; ".join(
            f"{place}: found {found.get(place, 'nothing')}, expected {want.get(place, 'nothing')}"
            for place in wrong[:5]
        )
        raise BaseModelError(
            f"{origin}: {len(wrong)} of {len(want)} tensors are not those of this encoder "
            f"({lines}); give the file that was published for it",
            code=Refusal.SHAPE_MISMATCH,
        )
    broken = [place for place, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise BaseModelError(
            f"{origin}: found numbers that are not finite in {len(broken)} tensors, the first "
            f"{broken[0]}; expected finite weights; fetch the file again",
            code=Refusal.NON_FINITE,
        )
    # Copied in its final layout first: a device takes no strided views.
    return jax.tree.map(lambda a: jnp.asarray(np.ascontiguousarray(a), jnp.float32), nested(arrays))


def params_digest(params: Mapping[str, Any], *more: object) -> str:
    """What an encoder is known by: SHA-256 of its parameters, and of what else decides numbers.

    Args:
        params: nested dictionaries of arrays.
        more: such as its configuration, and how pictures are prepared; by their `repr`.
    """
    digest = hashlib.sha256(repr(more).encode())
    for place, leaf in sorted(leaves(params)):
        digest.update(f"{place}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()
