"""DINOv2 in its authors' layout, in transformers' names: pure renaming and splitting."""

from collections.abc import Mapping

import numpy as np

_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_LAYER = {
    "attn.proj": "attention.output.dense",
    "ls1": "layer_scale1",
    "ls2": "layer_scale2",
}
_FUSED = ("query", "key", "value")
"""What `attn.qkv` holds, from top to bottom."""


def dinov2_from_original(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A DINOv2 in transformers' names.

    Args:
        tensors: by the authors' key (`blocks.0.attn.qkv.weight`), in torch layout.

    Returns:
        The same numbers; views, nothing is copied. A key that is not of that layout keeps its
        name, so that whoever compares names says so.
    """
    found = {}
    for key, tensor in tensors.items():
        if not key.startswith("blocks."):
            found[_NAMES.get(key, key)] = tensor
            continue
        _, number, *parts, leaf = key.split(".")
        layer, module = f"encoder.layer.{number}", ".".join(parts)
        if module == "attn.qkv":
            for name, part in zip(_FUSED, np.split(tensor, len(_FUSED)), strict=True):
                found[f"{layer}.attention.attention.{name}.{leaf}"] = part
        else:
            leaf = "lambda1" if leaf == "gamma" else leaf
            found[f"{layer}.{_LAYER.get(module, module)}.{leaf}"] = tensor
    return found
