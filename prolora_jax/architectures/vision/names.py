"""Encoders of pictures: transformers' checkpoints as the trees of its Flax classes."""

from collections.abc import Mapping

import numpy as np

from prolora_jax.architectures.flax_trees import Tree, nested
from prolora_jax.layout import weight_to_kernel

# Old files have the numbers 0 to 256 as a tensor.
_BUFFERS = ("position_ids",)
# Of a whole CLIP: its text tower, and numbers of the loss.
_NOT_VISION = ("text_model.", "text_projection.", "logit_scale", "logit_bias")


def clip_vision_to_flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    """The vision tower of a CLIP as the parameters of transformers' Flax classes.

    Args:
        tensors: by torch key, in torch layout; a text tower beside it is passed over.

    Returns:
        Nested dictionaries of the same numbers in Flax layout; views, nothing is copied.
    """
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(_NOT_VISION)}
    return _flax(kept)


def dinov2_to_flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    """A DINOv2 as the parameters of transformers' `FlaxDinov2Model`.

    Args:
        tensors: by torch key, in torch layout; of a classifier, too, whose head is passed over.

    Returns:
        Nested dictionaries of the same numbers in Flax layout; views, nothing is copied.
    """
    plain = {
        key.removeprefix("dinov2.").removeprefix("dinov2_with_registers."): key for key in tensors
    }
    return _flax({k: tensors[key] for k, key in plain.items() if not k.startswith("classifier.")})


def _flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    found = {}
    for key, tensor in tensors.items():
        *parts, leaf = key.split(".")
        if leaf in _BUFFERS:
            continue
        if leaf == "weight":
            if parts[-1] == "position_embedding":
                leaf = "embedding"
            elif tensor.ndim in {2, 4}:
                leaf, tensor = "kernel", weight_to_kernel(tensor)
            else:
                leaf = "scale"
        found["/".join((*parts, leaf))] = tensor
    return nested(dict(sorted(found.items())))
