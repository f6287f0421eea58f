"""Encoders of pictures: transformers' checkpoints as the trees of its Flax classes."""

from collections.abc import Mapping

import numpy as np

from prolora_jax.architectures.flax_trees import Tree, nested
from prolora_jax.layout import weight_to_kernel

# Old files have the numbers 0 to 256 as a tensor.
_BUFFERS = ("position_ids",)
# Of a whole CLIP: its text tower, and numbers of the loss.
_NOT_VISION = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
# What DINOv2's attention is called in a net of transformers since 5; its own files, and Flax's
# classes, keep the names that it had before.
_ATTENTION = {
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
}


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
        tensors: by torch key, in torch layout, of transformers before or since version 5; of a
            classifier, too, whose head is passed over.

    Returns:
        Nested dictionaries of the same numbers in Flax layout; views, nothing is copied.
    """
    plain = {_older(key): tensor for key, tensor in tensors.items()}
    return _flax({k: tensor for k, tensor in plain.items() if not k.startswith("classifier.")})


def _older(key: str) -> str:
    key = key.removeprefix("dinov2.").removeprefix("dinov2_with_registers.")
    for newer, older in _ATTENTION.items():
        key = key.replace(newer, older)
    return key


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
