"""Text encoders and VAEs: their checkpoints as the Flax trees of transformers and diffusers."""

from collections.abc import Mapping

import numpy as np

from prolora_jax.architectures.flax_trees import Tree, nested
from prolora_jax.layout import weight_to_kernel

# What diffusers' Flax VAE calls its attention, by what torch's does today; its old names are these.
_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
_BUFFERS = "position_ids"  # old files have the numbers 0 to 76 as a tensor


def text_encoder_to_flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    """A CLIP text encoder's checkpoint as the parameters of transformers' Flax classes.

    Args:
        tensors: by torch key, in torch layout; of transformers before or since version 5, which
            leaves out the level `text_model`.

    Returns:
        Nested dictionaries of the same numbers in Flax layout; views, nothing is copied.
    """
    found = {}
    for key, tensor in tensors.items():
        *parts, leaf = key.split(".")
        if leaf == _BUFFERS:
            continue
        if not parts or parts[0] not in {"text_model", "text_projection"}:
            parts.insert(0, "text_model")
        if leaf == "weight" and parts[-1].endswith("_embedding"):
            found["/".join((*parts, "embedding"))] = tensor
        else:
            name, array = _leaf(leaf, tensor)
            found["/".join((*parts, name))] = array
    return nested(dict(sorted(found.items())))


def vae_to_flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    """A VAE's checkpoint as the parameters of diffusers' `FlaxAutoencoderKL`.

    Args:
        tensors: by torch key (`decoder.conv_in.weight`), in torch layout.

    Returns:
        Nested dictionaries of the same numbers in Flax layout; views, nothing is copied.
    """
    found = {}
    for key, tensor in tensors.items():
        *parts, leaf = key.split(".")
        places: list[str] = []
        for part in parts:
            if part.isdecimal() and places:
                places[-1] += f"_{part}"
            else:
                places.append(part)
        in_attention = any(place.startswith("attentions_") for place in places)
        if in_attention:
            places[-1] = _VAE_ATTENTION.get(places[-1], places[-1])
            if tensor.ndim == 4:  # of files that have a linear layer as a 1x1 convolution
                tensor = tensor[:, :, 0, 0]
        name, array = _leaf(leaf, tensor)
        found["/".join((*places, name))] = array
    return nested(dict(sorted(found.items())))


def _leaf(leaf: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Name and array, in Flax layout, of a layer's weight or bias."""
    if leaf != "weight":
        return leaf, tensor
    if tensor.ndim in {2, 4}:
        return "kernel", weight_to_kernel(tensor)
    # Of other nets a kernel may have other axes: it is left to whoever looks at shapes.
    return "scale" if tensor.ndim == 1 else "kernel", tensor
