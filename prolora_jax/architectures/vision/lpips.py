"""LPIPS: VGG16's convolutions and the weights of their channels, from every layout they come in."""

from collections.abc import Mapping

import numpy as np

from prolora_jax.architectures.flax_trees import Tree, nested
from prolora_jax.layout import weight_to_kernel

VGG_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Numbers of VGG16's convolutions among torchvision's `features`."""

_SLICES = "net.slice"  # what lpips calls the parts between two looks at the features
_TRUNK = "features."
_HEADS = ("lin", "lins.")
_MIDDLE = ".model.1."  # behind a dropout layer, which counts


def lpips_to_flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    """VGG16's trunk, LPIPS' heads, or both, as the parameters of `Lpips`.

    Args:
        tensors: by torch key, in torch layout: torchvision's `features.0.weight`, the whole
            net's of lpips, `net.slice1.0.weight` and `lin0.model.1.weight`, or the heads alone.
            Its classifier, and the numbers that pictures are normalised by, are passed over.

    Returns:
        Nested dictionaries of the same numbers in Flax layout, `features/0/kernel` and
        `lin0/kernel`; views, nothing is copied.
    """
    found = {}
    for key, tensor in tensors.items():
        if key.startswith(_SLICES):
            key = _TRUNK + key.removeprefix(_SLICES).partition(".")[2]
        if key.startswith(_TRUNK):
            place, _, leaf = key.replace(".", "/").rpartition("/")
        elif key.startswith(_HEADS) and _MIDDLE in key:
            head, _, leaf = key.partition(_MIDDLE)
            place = head.replace("lins.", "lin")  # the same heads once more, in a list
        else:
            continue
        if leaf == "weight" and tensor.ndim == 4:
            leaf, tensor = "kernel", weight_to_kernel(tensor)
        found[f"{place}/{leaf}"] = tensor
    return nested(dict(sorted(found.items())))
